"""The process of a worker: apart from the trainer while it lives, and nothing of it is left when it ends."""

import functools
import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from worker_envs import HostileEnv, TracingEnv, WeighingEnv
from worker_traces import PREFIX, Traces, descendants, group_members, tidy_workers, wait_until, watchdog

from trl_mise.envs.kitchen import KitchenEnv
from trl_mise.envs.webshop import WebShopEnv
from trl_mise.envs.worker_cleanup import MARK, MAX_LOG_BYTES, kill_marked, start_time
from trl_mise.envs.workers import EnvironmentWorkers, WorkerFailure

HERE = Path(__file__).parent


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., EnvironmentWorkers]]:
    with tidy_workers(tmp_path, monkeypatch) as make:
        yield make


def run_script(tmp_path: Path, body: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, write_script(tmp_path, body)], capture_output=True, text=True, check=False)


def write_script(tmp_path: Path, body: str) -> str:
    """A script that a user might write, with this checkout and the environments of the tests in reach."""
    script = tmp_path / "script.py"
    start = f"""
        import os, signal, sys
        sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
        from worker_envs import HostileEnv, PoliteEnv
        from trl_mise.envs.workers import EnvironmentWorkers
    """
    script.write_text(textwrap.dedent(start) + textwrap.dedent(body), encoding="utf-8")
    return str(script)


class TestApart:
    def test_a_group_and_a_directory_of_its_own(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        info = workers(TracingEnv)().reset(seed=0)[1]
        assert info["pid"] == info["group"] not in (os.getpid(), os.getpgrp())
        assert info["directory"] != os.getcwd() and Path(info["directory"]).name.startswith(PREFIX)

    def test_nothing_heavy_is_loaded(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        """Not even NumPy, unless an environment does."""
        assert workers(TracingEnv)().reset(seed=0)[1]["heavy"] == []

    @pytest.mark.parametrize("factory", [KitchenEnv, WebShopEnv])
    def test_nor_by_our_own_environments(self, workers: Callable[..., EnvironmentWorkers], factory: Any) -> None:
        assert workers(functools.partial(WeighingEnv, factory))().reset(seed=0)[0] == ""

    def test_modules_are_found_where_the_trainer_finds_them(
        self, workers: Callable[..., EnvironmentWorkers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also by a relative path, in spite of the other working directory; and the variable stays the user's."""
        (tmp_path / "mine").mkdir()
        text = "from worker_envs import TracingEnv\nclass MyEnv(TracingEnv): pass\n"
        (tmp_path / "mine" / "relative_env.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend("mine")
        monkeypatch.setenv("PYTHONPATH", "somewhere")
        from relative_env import MyEnv  # type: ignore[import-not-found]

        info = workers(MyEnv)().reset(seed=0)[1]
        assert info["python_path"] == "somewhere" and info["arguments"] == []

    @pytest.mark.parametrize("chosen", [None, "5"])
    def test_all_hash_alike(
        self, workers: Callable[..., EnvironmentWorkers], monkeypatch: pytest.MonkeyPatch, chosen: str | None
    ) -> None:
        """What the order of a set decides is the same after a restart."""
        monkeypatch.delenv("PYTHONHASHSEED", raising=False)
        if chosen:
            monkeypatch.setenv("PYTHONHASHSEED", chosen)
        make = workers(TracingEnv)
        expected = subprocess.run(
            [sys.executable, "-c", "print(*{f'word {number}' for number in range(20)}, sep=',')"],
            env={**os.environ, "PYTHONHASHSEED": chosen or "0"},
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(2):
            assert make().reset(seed=0)[1]["order"] == expected.stdout.strip().split(",")


class TestGone:
    def test_close_leaves_nothing(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        make = workers()
        env = make()
        env.reset(seed=0)
        traces = Traces(env)
        env.close()
        env.close()
        traces.assert_gone()
        env.reset(seed=0)
        traces = Traces(env)
        make.close()
        make.close()
        traces.assert_gone()

    def test_nor_does_forgetting_it(self) -> None:
        env = EnvironmentWorkers(HostileEnv)()
        env.reset(seed=0)
        traces = Traces(env)
        del env
        traces.assert_gone()

    def test_close_does_not_wait_for_what_hangs(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers(timeout=1e6)()
        env.reset(seed=0)
        env.begin_step("stray and sleep")
        traces = Traces(env)
        wait_until(lambda: len(descendants(traces.directory)) == 2, "the environment has a child")
        with watchdog(20):
            env.close()
        traces.assert_gone()

    def test_the_directory_goes_although_the_worker_left_it(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers()()
        env.reset(seed=0)
        traces = Traces(env)
        assert env.step("wander")[0] == "wandered"
        (traces.directory / "left behind").write_text("something")
        env.close()
        traces.assert_gone()

    def test_two_that_answer_for_one(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers()()
        env.reset(seed=0)
        traces = Traces(env)
        assert env.step("fork and return")[0] == "forked"
        traces.wait_for_answer()
        with pytest.raises(WorkerFailure, match="a message that answers no call") as caught:
            env.step("polite")
        assert caught.value.kind == "garbage"
        traces.assert_gone()

    def test_a_stray_is_found_while_it_is_being_started(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """For some milliseconds of `exec` a process shows no environment, and so no mark. Here until a first look."""
        mark = f"{MARK}={tmp_path}"
        # Nothing may be exec'ed between the shell and what bears the mark: it would show the shell's `PWD`.
        script = f"read line; export '{mark}'; exec sleep 1000"
        command = ["/bin/sh", "-c", script]
        with subprocess.Popen(command, env={}, start_new_session=True, stdin=subprocess.PIPE) as stray:
            release = stray.stdin
            assert release is not None
            environ = Path(f"/proc/{stray.pid}/environ")
            looks = 0

            def let_it_start(seconds: float) -> None:
                nonlocal looks
                looks += 1
                if looks == 1:
                    assert environ.read_bytes() == b""
                    release.write(b"\n")
                    release.flush()
                    wait_until(lambda: os.fsencode(mark) in environ.read_bytes(), "the stray bears the mark")

            monkeypatch.setattr("trl_mise.envs.worker_cleanup.time", SimpleNamespace(sleep=let_it_start))
            try:
                kill_marked(str(tmp_path), start_time(os.getpid()))
                assert stray.wait(timeout=10) == -signal.SIGKILL
            finally:
                stray.kill()

    def test_a_fork_of_the_trainer_leaves_its_workers_alone(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        """As a data loader's processes, which end and forget everything that they were born with."""
        make = workers()
        env = make()
        env.reset(seed=0)
        pid = os.fork()
        if pid == 0:
            make.close()
            del env, make
            gc.collect()
            os._exit(0)
        os.waitpid(pid, 0)
        assert env.step("polite")[0] == "seed 0 count 1 polite"

    @pytest.mark.parametrize("misdeed", ["orphan and sleep", "stray and sleep"])
    @pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "raise SystemError", "sys.exit()"])
    def test_it_dies_with_the_trainer(self, how: str, misdeed: str, tmp_path: Path) -> None:
        """Although its environment hangs, and has a child of its own."""
        script = write_script(
            tmp_path,
            f"""
            env = EnvironmentWorkers(HostileEnv)()
            env.reset(seed=0)
            env.begin_step({misdeed!r})
            group = env._worker._process._popen.pid
            print(group, os.readlink(f"/proc/{{group}}/cwd"), flush=True)
            sys.stdin.readline()
            {how}
            """,
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([sys.executable, script], text=True, **pipes) as trainer:  # type: ignore[call-overload]
            line = trainer.stdout.readline().split()
            group, directory = int(line[0]), Path(line[1])
            wait_until(lambda: len(descendants(directory)) == 2, "the environment has a child")
            trainer.communicate("go\n")
        wait_until(lambda: not group_members(group) and not descendants(directory), "all are gone")
        assert not directory.exists()


class TestLog:
    def test_it_stays_short_and_keeps_the_end(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers()()
        env.reset(seed=0)
        traces = Traces(env)
        for _ in range(20):
            assert env.step("chatter")[0] == "said"
        assert traces.log_size < MAX_LOG_BYTES + 1_100_000
        with pytest.raises(WorkerFailure, match="SIGKILL; the process wrote:\n    x+ last words$"):
            env.step("die")

    def test_also_while_nobody_calls(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers()()
        env.reset(seed=0)
        traces = Traces(env)
        assert env.step("chatter in the background")[0] == "said"
        tail = b"last words\n"
        # More than that is written, and the tail last; the moment in between may be too short to be seen.
        wait_until(
            lambda: traces.process.last_words().endswith(tail.decode()) and traces.log_size <= MAX_LOG_BYTES,
            "the log is cut, its end is kept",
        )


class TestMain:
    def test_a_factory_of_the_script_itself(self, tmp_path: Path) -> None:
        """What stands in `__main__` is found again, and the script's own work is not done twice."""
        done = run_script(
            tmp_path,
            """
            class MyEnv(PoliteEnv):
                def text(self):
                    return "mine " + super().text()

            if __name__ == "__main__":
                env = EnvironmentWorkers(MyEnv)()
                print(env.reset(seed=5)[0])
            """,
        )
        assert done.stdout == "mine seed 5 count 0\n", done.stderr

    def test_a_script_that_would_train_in_its_workers(self, tmp_path: Path) -> None:
        done = run_script(
            tmp_path,
            """
            class MyEnv(PoliteEnv):
                pass

            env = EnvironmentWorkers(MyEnv)()
            print(env.reset(seed=5)[0])
            """,
        )
        assert 'put what the script does under `if __name__ == "__main__":`' in done.stderr
        assert done.returncode == 1 and done.stdout == ""

    def test_a_script_that_imports_its_factory_is_not_imported(self, tmp_path: Path) -> None:
        done = run_script(tmp_path, "print('once', EnvironmentWorkers(PoliteEnv)().reset(seed=5)[0])")
        assert done.stdout == "once seed 5 count 0\n", done.stderr

    def test_a_factory_that_nobody_finds_again(self) -> None:
        code = (
            "from trl_mise.envs.workers import EnvironmentWorkers\nclass Env: pass\n"
            "try:\n    EnvironmentWorkers(Env)\nexcept ValueError as error:\n    print(error)"
        )
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert "environment_factory Env is defined in an interactive session" in done.stdout, done.stderr
