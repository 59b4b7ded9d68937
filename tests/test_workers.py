"""Environments in processes of their own: whatever they do, one call fails, all traces go, and `reset` works again."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_envs import (
    KINDS,
    MISDEEDS,
    BrokenFactoryEnv,
    HostileEnv,
    ListingEnv,
    NeedyEnv,
    PoliteEnv,
    TracingEnv,
)

from trl_mise.envs.answers import MAX_TEXT_CHARS, checked_reset, checked_step
from trl_mise.envs.base import BackgroundEnv, EnvironmentFailure
from trl_mise.envs.check import check_env
from trl_mise.envs.kitchen import KitchenEnv
from trl_mise.envs.pool import EnvironmentPool
from trl_mise.envs.webshop import SMALL_SHOP, WebShopEnv
from trl_mise.envs.workers import EnvironmentWorkers, WorkerFailure, needs_process

HERE = Path(__file__).parent
KIND_OF = {misdeed: kind for kind, misdeeds in KINDS.items() for misdeed in misdeeds}


def group_members(group: int) -> list[int]:
    """Processes of this group that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Gives other processes time; only a failure waits for the end of it."""
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail(f"waited in vain: {what}")


class Traces:
    """What a worker leaves in the world while it lives."""

    def __init__(self, env: Any) -> None:
        process = env._worker._process
        self.group = process._popen.pid
        self.directory = Path(f"/proc/{self.group}/cwd").resolve()
        assert self.directory.name.startswith("trl-mise-env-")

    def assert_gone(self) -> None:
        wait_until(lambda: group_members(self.group) == [], f"processes {group_members(self.group)} are left")
        assert not self.directory.exists()


@pytest.fixture
def workers() -> Iterator[Callable[..., EnvironmentWorkers]]:
    made: list[EnvironmentWorkers] = []

    def make(factory: Any = HostileEnv, **options: Any) -> EnvironmentWorkers:
        made.append(EnvironmentWorkers(factory, **{"timeout": 20.0, "reset_timeout": 60.0, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def episode(env: Any, seed: int) -> list[Any]:
    """A whole polite episode, without what does not travel."""
    seen = [env.reset(seed=seed, options={"row": 1})[0]]
    for action in ("a", "b", "c"):
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((observation, reward, terminated, truncated, info["won"]))
    return seen


@pytest.mark.parametrize("misdeed", sorted(MISDEEDS))
def test_a_misdeed_costs_one_call(workers: Callable[..., EnvironmentWorkers], misdeed: str) -> None:
    """In the middle of an episode."""
    # Short where the deadline is what is tested, and long where only a busy machine could reach it.
    env = workers(timeout=1.0 if KIND_OF[misdeed] == "timeout" else 30.0)()
    env.reset(seed=3)
    env.step("polite")
    traces = Traces(env)
    with pytest.raises(WorkerFailure) as caught:
        env.step(misdeed)
    assert caught.value.kind == KIND_OF[misdeed], str(caught.value)
    assert f"HostileEnv.step(action={misdeed!r}" in str(caught.value)
    assert len(str(caught.value)) < 20_000
    traces.assert_gone()
    with pytest.raises(WorkerFailure):
        env.step("polite")  # the episode is over
    assert episode(env, seed=4) == episode(PoliteEnv(), seed=4)


@pytest.mark.parametrize("misdeed", ["raise", "sleep", "die", "surrogate", "orphan and die"])
def test_a_misdeed_during_reset(workers: Callable[..., EnvironmentWorkers], misdeed: str) -> None:
    env = workers(reset_timeout=3.0 if misdeed == "sleep" else 60.0)()
    with pytest.raises(WorkerFailure, match=r"HostileEnv.reset\(seed=3"):
        env.reset(seed=3, options={"on_reset": misdeed})
    assert episode(env, seed=4) == episode(PoliteEnv(), seed=4)


def test_killed_from_outside(workers: Callable[..., EnvironmentWorkers]) -> None:
    env = workers()()
    env.reset(seed=0)
    traces = Traces(env)
    os.kill(traces.group, signal.SIGKILL)
    with pytest.raises(WorkerFailure, match="crash: it was killed by SIGKILL") as caught:
        env.step("polite")
    assert caught.value.kind == "crash"
    traces.assert_gone()
    assert episode(env, seed=1) == episode(PoliteEnv(), seed=1)


def test_killed_while_it_is_reset(workers: Callable[..., EnvironmentWorkers]) -> None:
    env = workers()()
    env.begin_reset(seed=0, options={"on_reset": "sleep"})
    traces = Traces(env)
    os.kill(traces.group, signal.SIGKILL)
    with pytest.raises(WorkerFailure, match="reset.*crash: it was killed by SIGKILL"):
        env.result()
    traces.assert_gone()


def test_a_failure_tells_what_the_process_wrote(workers: Callable[..., EnvironmentWorkers]) -> None:
    env = workers()()
    env.reset(seed=0)
    with pytest.raises(WorkerFailure, match=r"ValueError: lost the thread; the process wrote:(.|\n)*in _raise"):
        env.step("raise")


def test_a_factory_that_fails(workers: Callable[..., EnvironmentWorkers]) -> None:
    env = workers(BrokenFactoryEnv)()
    for _ in range(2):
        with pytest.raises(WorkerFailure, match="OSError: no license") as caught:
            env.reset(seed=0)
        assert caught.value.kind == "exception"


class TestAsOthers:
    @pytest.mark.parametrize("envs_per_worker", [1, 2])
    @pytest.mark.parametrize("factory", [KitchenEnv, functools.partial(WebShopEnv, **SMALL_SHOP)])
    def test_the_contract_is_kept(
        self, workers: Callable[..., EnvironmentWorkers], factory: Any, envs_per_worker: int
    ) -> None:
        check_env(workers(factory, envs_per_worker=envs_per_worker))

    def test_the_same_episodes_as_in_this_process(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        factory = functools.partial(WebShopEnv, **SMALL_SHOP)
        there, here = workers(factory)(), factory()
        for seed in range(3):
            (one, info), (other, same) = there.reset(seed=seed, options={}), here.reset(seed=seed, options={})
            assert one == other and info["instruction"] == same["instruction"]
            for _ in range(4):
                actions = info["admissible_actions"]()
                assert actions == same["admissible_actions"]()
                if not actions:
                    break
                *answer, info = there.step(actions[-1])
                *expected, same = here.step(actions[-1])
                assert answer == expected
                assert {**info, "admissible_actions": 0} == {**same, "admissible_actions": 0}

    def test_info_travels_as_json(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers()()
        env.reset(seed=0)
        info = env.step("polite")[4]
        assert info["pair"] == [1, 2] and info["odd"] == repr(object) and info["won"] is False

    def test_arguments_reach_the_environment(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers(functools.partial(PoliteEnv, offset=7))()
        assert env.reset(seed=1)[0] == "seed 1 count 7"

    def test_listings_are_those_of_the_last_answer(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers(PoliteEnv)()
        _, first = env.reset(seed=0)
        assert first["admissible_actions"]() == first["admissible_actions"]() == ["say 0", "wait"]
        *_, second = env.step("a")
        assert second["admissible_actions"]() == ["say 1", "wait"]
        with pytest.raises(RuntimeError, match="called after the next step or reset"):
            first["admissible_actions"]()

    def test_a_listing_that_fails_costs_the_episode(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers(ListingEnv)()
        _, info = env.reset(seed=0)
        with pytest.raises(WorkerFailure, match="no list today"):
            info["admissible_actions"]()
        with pytest.raises(WorkerFailure):
            env.step("a")

    def test_environments_work_at_the_same_time(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        """Three that would sleep forever are waited for together, and each fails by itself."""
        make = workers(timeout=1.0)
        envs = [make() for _ in range(4)]
        for number, env in enumerate(envs):
            assert isinstance(env, BackgroundEnv)
            env.begin_reset(seed=number)
        assert [env.result()[0] for env in envs] == [f"seed {i} count 0" for i in range(4)]
        for number, env in enumerate(envs):
            env.begin_step("polite" if number == 2 else "sleep")
        for number, env in enumerate(envs):
            if number == 2:
                assert env.result()[0] == "seed 2 count 1 polite"
            else:
                with pytest.raises(WorkerFailure, match="timeout: no answer within 1 s"):
                    env.result()

    def test_step_needs_a_reset(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        with pytest.raises(RuntimeError, match=r"step was called before reset; call reset\(\) first"):
            workers()().step("a")
        with pytest.raises(RuntimeError, match="no begin_reset or begin_step before it"):
            workers()().result()


class TestGroups:
    def test_a_process_is_shared(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        make = workers(TracingEnv, envs_per_worker=2)
        pids = [make().reset(seed=0)[0].split()[0] for _ in range(5)]
        assert pids[0] == pids[1] and pids[2] == pids[3] and len(set(pids)) == 3

    def test_they_fall_together_and_rise_again(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        make = workers(envs_per_worker=3)
        one, other, bystander = make(), make(), make()
        for env in (one, other, bystander):
            env.reset(seed=1)
        one.begin_step("die")
        other.begin_step("polite")
        with pytest.raises(WorkerFailure, match="SIGKILL"):
            one.result()
        # Whether the other's call still reached the process is a matter of luck.
        with pytest.raises(WorkerFailure, match="SIGKILL"):
            other.result()
        assert episode(one, seed=5) == episode(PoliteEnv(), seed=5)
        with pytest.raises(WorkerFailure, match="took it down"):
            bystander.step("polite")
        assert episode(bystander, seed=6) == episode(other, seed=6) == episode(PoliteEnv(), seed=6)

    def test_each_has_the_whole_time(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        """The second waits for the first, which takes most of a deadline; its own begins after that."""
        make = workers(functools.partial(SlowEnv, 0.7), envs_per_worker=3, timeout=1.2)
        envs = [make() for _ in range(3)]
        for env in envs:
            env.reset(seed=0)
        for env in envs:
            env.begin_step("a")
        assert [env.result()[0] for env in envs] == ["seed 0 count 1 a"] * 3

    def test_one_closes_and_the_others_go_on(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        make = workers(envs_per_worker=2)
        one, other = make(), make()
        one.reset(seed=0), other.reset(seed=0)
        traces = Traces(one)
        one.close()
        assert other.step("a")[0] == "seed 0 count 1 a"
        other.close()
        traces.assert_gone()


class SlowEnv(PoliteEnv):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self.seconds)
        return super().step(action)


class TestTheProcess:
    def test_it_is_apart(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        """A process group and a working directory of its own, and none of the heavy libraries."""
        env = workers(TracingEnv)()
        pid, group, directory, heavy = env.reset(seed=0)[0].split(" ", 3)
        assert pid == group != str(os.getpgrp())
        assert directory != os.getcwd() and "trl-mise-env-" in directory
        assert heavy == "[]"

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

    @pytest.mark.parametrize("how", ["kill", "exit", "raise"])
    def test_it_dies_with_the_trainer(self, how: str, tmp_path: Path) -> None:
        """Although its environment hangs, and has a child of its own."""
        script = tmp_path / "trainer.py"
        script.write_text(
            textwrap.dedent(
                f"""
                import os, signal, sys
                sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
                from worker_envs import HostileEnv
                from trl_mise.envs.workers import EnvironmentWorkers

                env = EnvironmentWorkers(HostileEnv)()
                env.reset(seed=0)
                env.begin_step("orphan and sleep")
                group = env._worker._process._popen.pid
                print(group, os.readlink(f"/proc/{{group}}/cwd"), flush=True)
                if {how!r} == "kill":
                    sys.stdin.readline()
                    os.kill(os.getpid(), signal.SIGKILL)
                if {how!r} == "raise":
                    sys.stdin.readline()
                    raise SystemError
                sys.stdin.readline()
                """
            ),
            encoding="utf-8",
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([sys.executable, str(script)], text=True, **pipes) as trainer:  # type: ignore[call-overload]
            line = trainer.stdout.readline().split()
            group, directory = int(line[0]), Path(line[1])
            wait_until(lambda: len(group_members(group)) == 2, "the environment has a child")
            trainer.communicate("go\n")
        wait_until(lambda: group_members(group) == [], "the group is gone")
        assert not directory.exists()

    def test_a_factory_of_the_script_itself(self, tmp_path: Path) -> None:
        """What stands in `__main__` is found again, and the script's own work is not done twice."""
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent(
                f"""
                import sys
                sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
                from worker_envs import PoliteEnv
                from trl_mise.envs.workers import EnvironmentWorkers

                class MyEnv(PoliteEnv):
                    def text(self):
                        return "mine " + super().text()

                if __name__ == "__main__":
                    env = EnvironmentWorkers(MyEnv)()
                    print(env.reset(seed=5)[0])
                """
            ),
            encoding="utf-8",
        )
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
        assert done.stdout == "mine seed 5 count 0\n", done.stderr

    def test_a_factory_that_nobody_finds_again(self) -> None:
        code = (
            "from trl_mise.envs.workers import EnvironmentWorkers\nclass Env: pass\n"
            "try:\n    EnvironmentWorkers(Env)\nexcept ValueError as error:\n    print(error)"
        )
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert "environment_factory Env is defined in an interactive session" in done.stdout, done.stderr


class TestArguments:
    def test_a_factory_that_cannot_be_pickled(self) -> None:
        for factory in (lambda: PoliteEnv(), functools.partial(lambda x: PoliteEnv(x), 1)):
            with pytest.raises(ValueError, match=r"environment_factory .*lambda.* cannot be sent .*functools.partial"):
                EnvironmentWorkers(factory)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"envs_per_worker": 0}, "envs_per_worker must be at least 1, got 0"),
            ({"timeout": 0.0}, "timeout must be a positive, finite number of seconds, got 0.0"),
            ({"timeout": float("inf")}, "timeout must be .* got inf"),
            ({"reset_timeout": -1.0}, "reset_timeout must be .* got -1.0"),
        ],
    )
    def test_out_of_range(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            EnvironmentWorkers(PoliteEnv, **options)

    def test_a_task_that_json_cannot_hold(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        with pytest.raises(ValueError, match="cannot be sent to a worker process.*tasks may hold what JSON can"):
            workers(PoliteEnv)().reset(seed=0, options={"row": object()})

    def test_who_needs_a_process(self) -> None:
        assert needs_process(NeedyEnv) and needs_process(functools.partial(functools.partial(NeedyEnv, 1)))
        assert not needs_process(PoliteEnv) and not needs_process(lambda: NeedyEnv())


class TestPool:
    def test_isolation(self) -> None:
        assert EnvironmentPool(NeedyEnv).isolated and not EnvironmentPool(PoliteEnv).isolated
        assert EnvironmentPool(PoliteEnv, isolation="process").isolated
        assert not EnvironmentPool(NeedyEnv, isolation="none").isolated

    @pytest.mark.parametrize("isolation", ["process", "none"])
    def test_the_same_ones_every_time_until_it_is_closed(self, isolation: Any) -> None:
        pool = EnvironmentPool(HostileEnv, isolation=isolation)
        envs = pool.take(2)
        assert pool.take(1) == envs[:1] and pool.take(3)[:2] == envs
        assert [env.reset(seed=1)[0] for env in envs] == ["seed 1 count 0"] * 2
        for _ in range(2):
            with pytest.raises(Exception, match="lost the thread"):
                envs[0].step("raise")
            assert envs[0].reset(seed=2)[0] == "seed 2 count 0"
        pool.close()
        pool.close()
        assert pool.take(1)[0].reset(seed=3)[0] == "seed 3 count 0"
        pool.close()

    def test_an_environment_that_exits_does_not_take_this_process_along(self) -> None:
        pool = EnvironmentPool(HostileEnv, isolation="none")
        (env,) = pool.take(1)
        env.reset(seed=0)
        with pytest.raises(EnvironmentFailure, match=r"called exit\(\) \(SystemExit: 0\)"):
            env.step("exit")
        with pytest.raises(EnvironmentFailure, match=r"called exit\(\)"):
            env.reset(seed=0, options={"on_reset": "exit"})
        assert env.reset(seed=1)[0] == "seed 1 count 0"
        pool.close()


class TestAnswers:
    def test_what_is_right_becomes_plain(self) -> None:
        np = pytest.importorskip("numpy")
        answer = checked_step(("text", np.float32(0.5), np.bool_(True), False, {"won": True}))
        assert (answer.reward, answer.terminated) == (0.5, True)
        assert type(answer.reward) is float and type(answer.terminated) is bool
        assert checked_step(("text", True, False, False, {})).reward == 1.0
        assert checked_reset(("text", {})).observation == "text"

    def test_as_long_as_it_may_be(self) -> None:
        assert len(checked_reset(("x" * MAX_TEXT_CHARS, {})).observation) == MAX_TEXT_CHARS
        with pytest.raises(EnvironmentFailure, match="1,000,001 characters, more than 1,000,000"):
            checked_reset(("x" * (MAX_TEXT_CHARS + 1), {}))

    def test_instructions_are_text_too(self) -> None:
        with pytest.raises(EnvironmentFailure, match=r"info\[\"instruction\"\] is no valid text"):
            checked_reset(("text", {"instruction": "\udcff"}))

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_nonsense_is_refused_by_name(self, nonsense: Any) -> None:
        for check in (checked_reset, checked_step):
            if check is checked_reset and isinstance(nonsense, tuple):
                continue
            with pytest.raises(EnvironmentFailure, match=r"must return \("):
                check(nonsense)
