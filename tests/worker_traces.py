"""What worker processes leave in the world, for tests that look whether it is gone again."""

import contextlib
import os
import select
import signal
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_envs import HostileEnv

from trl_mise.envs.workers import EnvironmentWorkers

PREFIX = "trl-mise-env-"


def processes_where(condition: Callable[[list[str], bytes], bool]) -> list[int]:
    """Processes that still run, and whose `stat` (from the state on) and environment meet a condition."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if fields[0] != "Z" and condition(fields, environ):
                found.append(int(entry.name))
    return found


def group_members(group: int) -> list[int]:
    return processes_where(lambda fields, _: int(fields[2]) == group)


def descendants(directory: Path) -> list[int]:
    """Processes that were started by the worker of this directory, wherever they have gone since."""
    return processes_where(lambda _, environ: os.fsencode(directory) in environ)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Gives other processes time; only a failure waits for the end of it."""
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail(f"waited in vain: {what}")


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Fails the test where it would wait for longer; nothing is measured."""

    def bark(*_: Any) -> None:
        pytest.fail(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Traces:
    """What a worker leaves in the world while it lives."""

    def __init__(self, env: Any) -> None:
        self._process = weakref.ref(env._worker._process)  # which must be forgotten when the environment is
        self.group = self.process._popen.pid
        self.directory = Path(f"/proc/{self.group}/cwd").resolve()
        assert self.directory.name.startswith(PREFIX)

    @property
    def process(self) -> Any:
        return self._process()

    @property
    def log_size(self) -> int:
        return os.fstat(self.process._log.fileno()).st_size

    def wait_for_answer(self) -> None:
        """Until something stands in the trainer's socket that nobody has read."""
        poller = select.poll()
        poller.register(self.process._sock, select.POLLIN)
        wait_until(lambda: bool(poller.poll(0)), "an answer")

    def assert_gone(self) -> None:
        """At once: whoever kills a worker comes back when it is dead."""
        left = {*group_members(self.group), *descendants(self.directory)}
        assert not left, f"processes {left} are left"
        assert not self.directory.exists()


@contextlib.contextmanager
def tidy_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., EnvironmentWorkers]]:
    """Makes workers, closes them, and looks whether any process or directory is left of them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made: list[EnvironmentWorkers] = []

    def make(factory: Any = HostileEnv, **options: Any) -> EnvironmentWorkers:
        made.append(EnvironmentWorkers(factory, **{"timeout": 30.0, "reset_timeout": 60.0, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not list(tmp_path.glob(f"{PREFIX}*"))
    assert not descendants(tmp_path / PREFIX)


def episode(env: Any, seed: int) -> list[Any]:
    """A whole polite episode, without what does not travel."""
    seen = [env.reset(seed=seed, options={"row": 1})[0]]
    for action in ("a", "b", "c"):
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((observation, reward, terminated, truncated, info["won"]))
    return seen
