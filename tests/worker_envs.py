"""Environments that misbehave in every way that we could think of; imported in worker processes, so without torch."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class PoliteEnv:
    """Counts; the seed is in every observation. `info` has what cannot travel as it is."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.lock = threading.Lock()  # like a handle of a library: it can be neither copied nor pickled

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.seed, self.count, self.options = seed, self.offset, dict(options or {})
        return self.text(), {"instruction": "count", "admissible_actions": self.actions}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.count += 1
        done = self.count >= self.offset + 3
        info = {"won": done, "pair": (1, 2), "odd": object, "admissible_actions": self.actions, "action_valid": True}
        return f"{self.text()} {action}", float(done), done, False, info

    def text(self) -> str:
        return f"seed {self.seed} count {self.count}"

    def actions(self) -> list[str]:
        return [f"say {self.count}", "wait"]

    def close(self) -> None:
        pass


class HostileEnv(PoliteEnv):
    """Polite, until an action (or `options["on_reset"]`) names a misdeed."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        answer = super().reset(seed=seed, options=options)
        misdeed = (options or {}).get("on_reset")
        return answer if misdeed is None else MISDEEDS[misdeed]()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if action in MISDEEDS or action in ODDITIES:
            return {**MISDEEDS, **ODDITIES}[action]()
        return super().step(action)


def _raise() -> Any:
    raise ValueError("lost the thread")


def _throw(error: BaseException) -> Any:
    raise error


def _sleep() -> Any:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def _spin() -> Any:
    while True:
        pass


def _die() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _recurse() -> Any:
    return _recurse()


def _no_memory() -> Any:
    raise MemoryError


def _grandchild(seconds: str = "1000") -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])


def _orphan_and_die() -> Any:
    _grandchild()
    os._exit(3)


def _orphan_and_sleep() -> Any:
    _grandchild()
    return _sleep()


def _stray(seconds: str = "1000") -> "subprocess.Popen[bytes]":
    """A child in a session of its own, as servers are often started."""
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"], start_new_session=True)


def _stray_and_die() -> Any:
    _stray()
    os._exit(3)


def _stray_and_sleep() -> Any:
    _stray()
    return _sleep()


def _fork_and_die() -> Any:
    """The child keeps every descriptor open, the trainer's socket among them."""
    if os.fork() == 0:
        _sleep()
    os._exit(3)


def _segfault() -> Any:
    import ctypes

    ctypes.string_at(0)


def _raise_unspeakable() -> Any:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    raise Unspeakable


def _raise_environment_failure() -> Any:
    from trl_mise.envs.base import EnvironmentFailure

    raise EnvironmentFailure("out of order")


def _circle() -> Any:
    info: dict[str, Any] = {}
    info["info"] = info
    return "text", 0.0, False, False, info


class _Unspeakable:
    def __repr__(self) -> str:
        raise ValueError("no words")


def _announce_little() -> Any:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\x00\x00\x00")
        except OSError:
            continue
    return _sleep()


def _chatter() -> Any:
    print("x" * 1_000_000, "last words", flush=True)
    return "said", 0.0, False, False, {}


def _chatter_in_the_background() -> Any:
    threading.Thread(target=lambda: [_chatter() for _ in range(30)]).start()
    return "said", 0.0, False, False, {}


def _wander() -> Any:
    os.chdir("/")
    return "wandered", 0.0, False, False, {}


def _fork_and_return() -> Any:
    """Both go on, and both answer."""
    os.fork()
    return "forked", 0.0, False, False, {}


def _scribble() -> Any:
    """Writes on every descriptor but the standard ones, the trainer's socket among them."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\x00\x00\x00\x05hello")
        except OSError:
            continue
    return "scribbled", 0.0, False, False, {}


def _announce_much() -> Any:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\xff\xff\xff\xff")
        except OSError:
            continue
    return _sleep()


def _close_everything() -> Any:
    os.closerange(0, 64)
    return _sleep()


def _shout() -> Any:
    for _ in range(400):
        print("x" * 10_000, flush=True)
    raise ValueError("hoarse")


def _answer(observation: Any, reward: Any = 0.0, terminated: Any = False, info: Any = None) -> Any:
    return lambda: (observation, reward, terminated, False, {} if info is None else info)


MISDEEDS: dict[str, Any] = {
    "raise": _raise,
    "sleep": _sleep,
    "spin": _spin,
    "die": _die,
    "exit": lambda: sys.exit(0),
    "hard exit": lambda: os._exit(7),
    "recurse": _recurse,
    "no memory": _no_memory,
    "orphan and die": _orphan_and_die,
    "orphan and sleep": _orphan_and_sleep,
    "stray and die": _stray_and_die,
    "stray and sleep": _stray_and_sleep,
    "fork and die": _fork_and_die,
    "segfault": _segfault,
    "raise the unspeakable": _raise_unspeakable,
    "raise a failure": _raise_environment_failure,
    "interrupt": lambda: _throw(KeyboardInterrupt()),
    "scribble": _scribble,
    "announce little": _announce_little,
    "announce much": _announce_much,
    "close everything": _close_everything,
    "shout": _shout,
    "ten megabytes": _answer("x" * 10_000_000),
    "surrogate": _answer("ab\ud800cd"),
    "bytes": _answer(b"\xff\xfe"),
    "no observation": _answer(None),
    "nan": _answer("text", float("nan")),
    "text reward": _answer("text", "1.0"),
    "no flag": _answer("text", 0.0, "no"),
    "list info": _answer("text", 0.0, False, ["a"]),
    "not a tuple": lambda: "done",
    "circle": _circle,
    "long number": _answer("text", info={"n": 10**5000}),
    "much info": _answer("text", info={"page": "x" * 17_000_000}),
    "unspeakable info": _answer("text", info={"odd": _Unspeakable()}),
}
KINDS = {
    "crash": {
        *("die", "hard exit", "orphan and die", "close everything", "stray and die", "fork and die", "segfault"),
    },
    "timeout": {"sleep", "spin", "orphan and sleep", "stray and sleep", "announce little"},
    "exception": {
        *("raise", "exit", "recurse", "no memory", "shout", "raise the unspeakable", "raise a failure", "interrupt"),
    },
    "garbage": {
        *("circle", "long number", "much info", "unspeakable info"),
        *("scribble", "announce much", "ten megabytes", "surrogate", "bytes", "no observation", "nan"),
        *("text reward", "no flag", "list info", "not a tuple"),
    },
}

ODDITIES: dict[str, Any] = {
    "chatter": _chatter,
    "chatter in the background": _chatter_in_the_background,
    "wander": _wander,
    "fork and return": _fork_and_return,
    "a long page": _answer("x" * 900_000),
    "half a character": _answer("text", info={"note": "a\ud800b", "\ud800": 1, "emoji": "\N{GRINNING FACE}"}),
}
"""What costs nothing, at least not at once."""


class NeedyEnv(PoliteEnv):
    """Asks for a process of its own."""

    needs_process = True


class BrokenFactoryEnv(PoliteEnv):
    def __init__(self) -> None:
        raise OSError("no license")


HEAVY = ("torch", "transformers", "trl", "datasets")


class TracingEnv(PoliteEnv):
    """Says in `info` where it lives, what was loaded there, and what it inherited."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        return super().reset(seed=seed, options=options)[0], {
            "pid": os.getpid(),
            "group": os.getpgrp(),
            "directory": str(Path.cwd()),
            "heavy": [name for name in (*HEAVY, "numpy") if name in sys.modules],
            "order": list({f"word {number}" for number in range(20)}),
            "arguments": sys.argv[1:],
            "python_path": os.environ.get("PYTHONPATH"),
        }


class WeighingEnv(PoliteEnv):
    """Plays a step of another environment and says what that has loaded."""

    def __init__(self, factory: Any) -> None:
        super().__init__()
        env = factory()
        env.reset(seed=0)
        env.step("look")

    def text(self) -> str:
        return " ".join(name for name in HEAVY if name in sys.modules)


class SlowEnv(PoliteEnv):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self.seconds)
        return super().step(action)


class ClosingEnv(PoliteEnv):
    """Cannot be closed."""

    def close(self) -> None:
        raise OSError("stuck")


class ListingEnv(PoliteEnv):
    """Its list of actions cannot be had."""

    def actions(self) -> list[str]:
        raise RuntimeError("no list today")


class FaultyTaskEnv(PoliteEnv):
    """Speaks the words of `trainer_fakes`; some of its tasks end in a misdeed, at `reset` or in the second step."""

    IN_STEP: Mapping[int, str] = {1: "die", 5: "sleep", 9: "raise", 12: "ten megabytes", 14: "surrogate"}
    IN_RESET: Mapping[int, str] = {7: "die"}

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.task, self.said = seed, 0
        if seed in self.IN_RESET:
            return MISDEEDS[self.IN_RESET[seed]]()
        return f"say {(seed or 0) % 6}", {"instruction": "task a"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.said += 1
        if self.said == 2 and self.task in self.IN_STEP:
            return MISDEEDS[self.IN_STEP[self.task]]()
        done = self.said == 3
        return "more .", float(done and action[:1] == "a"), done, False, {}


class JavaTaskEnv(PoliteEnv):
    """Speaks the words of `trainer_fakes` while ScienceWorld runs; in some tasks its Java is killed in mid-episode."""

    needs_process = True
    KILLED = frozenset({3, 11})

    def __init__(self) -> None:
        from trl_mise.envs.scienceworld import ScienceWorldEnv

        super().__init__()
        self.game = ScienceWorldEnv("boil", variation=0)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.task, self.said = seed, 0
        self.game.reset(seed=0)
        return f"say {(seed or 0) % 6}", {"instruction": "task a"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.said += 1
        if self.said == 2 and self.task in self.KILLED:
            assert self.game._server is not None
            os.kill(self.game._server.pid, signal.SIGKILL)
        assert self.game.step("look around")[4]["action_valid"]
        done = self.said == 3
        return "more .", float(done and action[:1] == "a"), done, False, {}

    def close(self) -> None:
        self.game.close()
