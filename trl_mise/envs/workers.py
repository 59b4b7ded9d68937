"""Environments in processes of their own: a crash, a hang or nonsense ends one episode, and never the run.

A worker is a fresh interpreter in a private working directory and a process group of its own, and every call has a
deadline. Whatever goes wrong, the group is killed, the call raises [`WorkerFailure`], and `reset` starts anew.
"""

import base64
import contextlib
import functools
import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from .answers import InvalidAnswer, ResetAnswer, StepAnswer, checked_reset, checked_step
from .base import EnvironmentFactory, EnvironmentFailure
from .worker_process import WorkerProcess
from .worker_wire import HungUp, WireError, receive, send

FailureKind = Literal["crash", "timeout", "exception", "garbage"]

DEFAULT_RESET_TIMEOUT = 120.0
_CLOSE_SECONDS = 5.0
_MESSAGE_SECONDS = 2.0


class WorkerFailure(EnvironmentFailure):
    """An isolated environment failed; its process was killed.

    Args:
        kind (`str`): `"crash"`: the process is gone; `"timeout"`: no answer by the deadline; `"exception"`: the
            environment raised; `"garbage"`: it answered something that is no answer.
        message (`str`): which environment and call, what happened, and the last lines that the process wrote.
    """

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def needs_process(factory: EnvironmentFactory) -> bool:
    """Whether what `factory` makes asks for a process of its own: its class has `needs_process = True`."""
    return bool(getattr(_behind_partials(factory), "needs_process", False))


class EnvironmentWorkers:
    """A factory of environments that live in processes of their own.

    Args:
        factory (`Callable[[], TextEnv]`): makes one environment *in the worker*: it must be picklable, i.e. a class, a
            function of a module, or a `functools.partial` of one.
        envs_per_worker (`int`): environments that share a process. They work one after the other, and fall together.
        timeout (`float`): seconds for one `step`. In a shared process they count from when its turn comes.
        reset_timeout (`float`, *optional*): seconds for `reset`, in which the process starts as well; 120, or
            `timeout` where that is longer.

    Raises:
        ValueError: an argument out of range, or a factory that cannot be pickled.
    """

    def __init__(
        self,
        factory: EnvironmentFactory,
        *,
        envs_per_worker: int = 1,
        timeout: float = 60.0,
        reset_timeout: float | None = None,
    ) -> None:
        if os.name != "posix":
            raise ValueError("environments in processes of their own need a POSIX system; use env_isolation='none'")
        if envs_per_worker < 1:
            raise ValueError(f"envs_per_worker must be at least 1, got {envs_per_worker}")
        reset_timeout = max(DEFAULT_RESET_TIMEOUT, timeout) if reset_timeout is None else reset_timeout
        for name, seconds in (("timeout", timeout), ("reset_timeout", reset_timeout)):
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{name} must be a positive, finite number of seconds, got {seconds}")
        self.name = _name_of(factory)
        self._greeting = _greeting(factory, self.name)
        self._envs_per_worker, self._timeout, self._reset_timeout = envs_per_worker, timeout, reset_timeout
        self._workers: list[_Worker] = []
        self._made = 0

    def __call__(self) -> "WorkerEnv":
        """One environment; its process starts with the first `reset`."""
        if self._made % self._envs_per_worker == 0:
            self._workers.append(_Worker(self.name, self._greeting))
        self._made += 1
        return WorkerEnv(self._workers[-1], self._made - 1, self._timeout, self._reset_timeout)

    def close(self) -> None:
        """Kills all processes. May be called twice, and environments may be made again afterwards."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        self._made = 0


class WorkerEnv:
    """One environment in a worker process; a [`BackgroundEnv`]. Made by [`EnvironmentWorkers`].

    Of `info` arrives what JSON can hold, tuples as lists and anything else as its `repr`. `admissible_actions` that
    are a callable stay lazy, and are those of the last answer: called later than that, they raise.
    """

    def __init__(self, worker: "_Worker", number: int, timeout: float, reset_timeout: float) -> None:
        self._worker, self._number = worker, number
        self._timeout, self._reset_timeout = timeout, reset_timeout
        self._life: int | None = None  # the process of the worker in which this environment's episode runs
        self._call: _Call | None = None
        self._num_answers = 0

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.begin_reset(seed=seed, options=options)
        observation, info = self.result()
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.begin_step(action)
        observation, reward, terminated, truncated, info = self.result()
        return observation, reward, terminated, truncated, info

    def begin_reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Starts `reset`; also the process, where it does not run."""
        self._life = self._worker.start(self._number)
        request = {"call": "reset", "seed": seed, "options": None if options is None else dict(options)}
        self._call = self._begin(request, self._reset_timeout)

    def begin_step(self, action: str) -> None:
        """Starts `step`."""
        self._call = self._begin({"call": "step", "action": action}, self._timeout)

    def result(self) -> tuple[Any, ...]:
        """Waits for the answer to the call that was begun last: what `reset` or `step` returns.

        Raises:
            WorkerFailure: there is none.
        """
        call, self._call = self._call, None
        if call is None:
            raise RuntimeError("result() was called, but no begin_reset or begin_step before it")
        answer = self._worker.finish(call)
        if call.request["call"] == "reset":
            reset = self._checked(call, checked_reset, ResetAnswer, answer)
            return reset.observation, self._with_listing(reset.info)
        step = self._checked(call, checked_step, StepAnswer, answer)
        return step.observation, step.reward, step.terminated, step.truncated, self._with_listing(step.info)

    def close(self) -> None:
        """Closes the environment, and ends its process with the last one in it. May be called twice."""
        self._worker.close(self._number, self._life)
        self._life = None

    def _begin(self, request: dict[str, Any], timeout: float) -> "_Call":
        if self._life is None:
            raise RuntimeError("WorkerEnv.step was called before reset; call reset() first")
        return self._worker.begin({**request, "env": self._number}, self._life, timeout)

    def _checked(self, call: "_Call", check: Callable[[Any], Any], kind: type, reply: Any) -> Any:
        """The answer once more: who wrote it is not known."""
        found = reply.get("answer")
        try:
            answer = check(
                tuple(found.get(field.name) for field in fields(kind)) if isinstance(found, dict) else found
            )
        except InvalidAnswer as error:
            raise self._worker.fail(call, "garbage", str(error)) from None
        self._num_answers += 1
        return answer

    def _with_listing(self, info: Mapping[str, Any]) -> dict[str, Any]:
        info = dict(info)
        if isinstance(info.get("admissible_actions"), dict):
            info["admissible_actions"] = functools.partial(self._list_actions, self._num_answers)
        return info

    def _list_actions(self, answer: int) -> list[str]:
        if self._num_answers != answer or self._call is not None:
            raise RuntimeError(
                'info["admissible_actions"] was called after the next step or reset; list them before that'
            )
        call = self._begin({"call": "admissible"}, self._timeout)
        actions = self._worker.finish(call).get("actions")
        if not isinstance(actions, list) or not all(isinstance(action, str) for action in actions):
            raise self._worker.fail(call, "garbage", "the admissible actions are no list of str")
        return actions


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that was begun, or that could not be, because the process it was for is gone."""

    id: int
    request: Mapping[str, Any]
    life: int
    timeout: float
    began: float
    obstacle: WorkerFailure | None = None

    @property
    def text(self) -> str:
        arguments = ", ".join(
            f"{name}={value!r}" for name, value in self.request.items() if name not in ("call", "env")
        )
        return f"{self.request['call']}({arguments if len(arguments) <= 200 else f'{arguments[:200]}...'})"


class _Worker:
    """One process after the other, each for a few environments; `life` counts them."""

    def __init__(self, name: str, greeting: Mapping[str, Any]) -> None:
        self._name, self._greeting = name, greeting
        self._process: WorkerProcess | None = None
        self._life = 0
        self._open: set[int] = set()
        self._num_calls = 0
        self._waiting: dict[int, Any] = {}  # id of a call under way -> its reply, once there is one
        self._progress = 0.0  # when the last reply came
        self._last_end = "closed"

    def start(self, number: int) -> int:
        """Makes sure that a process runs, for environment `number` among others, and tells which one it is."""
        if self._process is None:
            self._life += 1
            self._waiting.clear()
            self._process = WorkerProcess(self._greeting)
        self._open.add(number)
        return self._life

    def begin(self, request: Mapping[str, Any], life: int, timeout: float) -> _Call:
        self._num_calls += 1
        call = _Call(self._num_calls, request, life, timeout, time.monotonic())
        if self._process is None or life != self._life:
            return replace(call, obstacle=self._taken_down(call))
        try:
            send(self._process.sock, {**request, "id": call.id}, timeout)
        except HungUp as error:
            return replace(call, obstacle=self.fail(call, "crash", self._process.exit_status() or str(error)))
        except TypeError as error:
            raise ValueError(
                f"{self._name}.{call.text} cannot be sent to a worker process ({error}); tasks may hold what JSON can"
            ) from None
        self._waiting[call.id] = None
        return call

    def finish(self, call: _Call) -> dict[str, Any]:
        """Waits for the reply to a call; replies to others that come first are kept for them."""
        if call.obstacle is not None:
            raise call.obstacle
        if self._process is None or call.life != self._life:
            raise self._taken_down(call)
        while self._waiting.get(call.id) is None:
            self._take_reply(call)
        reply = self._waiting.pop(call.id)
        if "error" in reply:
            kind: FailureKind = "garbage" if reply.get("kind") == "garbage" else "exception"
            raise self.fail(call, kind, f"{reply['error']}", str(reply.get("traceback", "")))
        return reply

    def _take_reply(self, call: _Call) -> None:
        assert self._process is not None
        deadline = max(call.began, self._progress) + call.timeout
        try:
            self._process.wait_readable(deadline)
            # It came in time, although others may have kept us from looking; its rest must not be long in coming.
            reply = receive(self._process.sock, max(deadline, time.monotonic() + _MESSAGE_SECONDS))
        except TimeoutError:
            raise self.fail(call, "timeout", f"no answer within {call.timeout:g} s") from None
        except HungUp as error:
            raise self.fail(call, "crash", self._process.exit_status() or str(error)) from None
        except WireError as error:
            raise self.fail(call, "garbage", str(error)) from None
        answered = reply.get("id") if isinstance(reply, dict) else None
        if not isinstance(answered, int) or self._waiting.get(answered, "unknown") is not None:
            raise self.fail(call, "garbage", f"a message that answers no call: {str(reply)[:80]!r}")
        self._waiting[answered] = reply
        self._progress = time.monotonic()

    def fail(self, call: _Call, kind: FailureKind, what: str, traceback: str = "") -> WorkerFailure:
        """Kills the process, and says what happened; the caller raises it."""
        self._last_end = f"{kind}: {what}"
        wrote = traceback or (self._process.log_tail() if self._process is not None else "")
        self.kill()
        lines = "".join(f"\n    {line}" for line in wrote.strip().splitlines()[-15:])
        return WorkerFailure(
            kind, f"{self._name}.{call.text}: {kind}: {what}" + (f"; the process wrote:{lines}" if lines else "")
        )

    def _taken_down(self, call: _Call) -> WorkerFailure:
        return WorkerFailure(
            "crash",
            f"{self._name}.{call.text}: crash: another environment of the same process took it down "
            f"({self._last_end})",
        )

    def close(self, number: int, life: int | None) -> None:
        """Closes one environment, in a few seconds or by force."""
        if life is None or life != self._life or self._process is None:
            return
        with contextlib.suppress(WorkerFailure):
            self.finish(self.begin({"call": "close", "env": number}, life, _CLOSE_SECONDS))
        self._open.discard(number)
        if not self._open:
            self.kill()

    def kill(self) -> None:
        process, self._process = self._process, None
        self._open.clear()
        if process is not None:
            process.kill()


def _name_of(factory: EnvironmentFactory) -> str:
    made_by = _behind_partials(factory)
    return getattr(made_by, "__qualname__", type(made_by).__qualname__)


def _behind_partials(factory: EnvironmentFactory) -> EnvironmentFactory:
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory


def _greeting(factory: EnvironmentFactory, name: str) -> dict[str, Any]:
    """What a worker needs to make an environment."""
    try:
        pickled = pickle.dumps(factory)
    except Exception as error:
        raise ValueError(
            f"environment_factory {name} cannot be sent to a worker process ({error}); use a class or a function that "
            "a module defines, with functools.partial for its arguments, or env_isolation='none'"
        ) from error
    needs_main = b"__main__" in pickled
    return {"factory": base64.b64encode(pickled).decode("ascii"), "main": _main_module(name) if needs_main else None}


def _main_module(name: str) -> dict[str, str]:
    """Where the script that the trainer runs in can be found again."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return {"kind": "module", "name": spec.name}
    path = getattr(main, "__file__", None)
    if path is None or not os.path.exists(path):
        raise ValueError(
            f"environment_factory {name} is defined in an interactive session, where a worker process cannot find it; "
            "put it into a module, or use env_isolation='none'"
        )
    return {"kind": "path", "name": os.path.abspath(path)}
