"""Calls to a worker process, in the order in which it works them off, and what becomes of them when it fails."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .base import EnvironmentFailure
from .worker_process import WorkerProcess
from .worker_wire import HungUp, WireError, encode

FailureKind = Literal["crash", "timeout", "exception", "garbage"]

_CLOSE_SECONDS = 5.0
_SHOWN_LINES = 15


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

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, str(self))


@dataclass(eq=False, slots=True)
class Call:
    """A call that was begun. It ends with a reply or with a failure, whoever waits for it."""

    id: int
    request: Mapping[str, Any]
    life: int
    timeout: float
    reply: dict[str, Any] | None = None
    failure: WorkerFailure | None = None

    @property
    def text(self) -> str:
        arguments = ", ".join(
            f"{name}={value!r}" for name, value in self.request.items() if name not in ("call", "env")
        )
        return f"{self.request['call']}({arguments if len(arguments) <= 200 else f'{arguments[:200]}...'})"


class Worker:
    """One process after the other, each for a few environments; `life` counts them.

    The process works its calls off one by one, so what it hangs or dies in is the oldest call without a reply. That
    one has its whole time from when it became the oldest; replies that arrived while nobody looked are never late.

    Args:
        name (`str`): what failures call the environment.
        greeting (`dict`): what the process needs to make one.
    """

    def __init__(self, name: str, greeting: Mapping[str, Any]) -> None:
        self._name, self._greeting = name, encode(greeting)
        self._process: WorkerProcess | None = None
        self._life = 0
        self._open: set[int] = set()
        self._num_calls = 0
        self._waiting: deque[Call] = deque()
        self._oldest_since = 0.0
        self._gone = ""  # why there is no process

    def start(self, number: int) -> int:
        """Makes sure that a process runs, for environment `number` among others, and tells which one it is.

        A process that cannot be started is a failure of the first call to it.
        """
        if self._process is None:
            self._life += 1
            try:
                self._process = WorkerProcess(self._greeting)
            except OSError as error:
                self._gone = f"no process could be started ({error})"
        self._open.add(number)
        return self._life

    def begin(self, request: Mapping[str, Any], life: int, timeout: float) -> Call:
        """Sends a call; nothing is waited for.

        Args:
            request (`dict`): `call`, `env`, and the call's arguments.
            life (`int`): the process that it is for, see `start`.
            timeout (`float`): seconds.

        Raises:
            ValueError: JSON cannot hold the arguments.
        """
        self._num_calls += 1
        call = Call(self._num_calls, request, life, timeout)
        if self._process is None or life != self._life:
            call.failure = self._failure(call, "crash", f"{self._gone}; reset() starts another")
            return call
        try:
            data = encode({**request, "id": call.id})
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{self._name}.{call.text} cannot be sent to a worker process ({error}); tasks may hold what JSON can"
            ) from None
        if not self._waiting:
            self._oldest_since = time.monotonic()
        self._waiting.append(call)
        self._process.post(data)
        return call

    def finish(self, call: Call) -> dict[str, Any]:
        """Waits for the reply to a call; replies to others that come first are kept for them.

        Raises:
            WorkerFailure: there is none.
        """
        while call.reply is None:
            if call.failure is not None:
                raise call.failure
            self._wait()
        return call.reply

    def fail(self, call: Call, kind: FailureKind, what: str, traceback: str = "") -> WorkerFailure:
        """Kills the process because of this call, which fails, and so do all others that wait for it."""
        process = self._process if call.life == self._life else None  # an old reply must not harm a new process
        if process is not None:
            self.kill(f"{call.text} of environment {call.request['env']} took the process down ({kind}: {what[:200]})")
        wrote = traceback or (process.last_words() if process is not None else "")
        lines = "".join(f"\n    {line}" for line in wrote.strip().splitlines()[-_SHOWN_LINES:])
        call.failure = self._failure(call, kind, what + (f"; the process wrote:{lines}" if lines else ""))
        return call.failure

    def abandon(self, call: Call) -> None:
        """Gives up on a call. A process in which there is nothing else is not waited for."""
        if call in self._waiting and len(self._open) == 1:
            self.kill(f"reset() was called before {call.text} was answered")

    def close(self, number: int, life: int | None) -> None:
        """Closes one environment, in a few seconds or by force, and ends the process with the last one."""
        if life is None or life != self._life or self._process is None:
            return
        self._open.discard(number)
        busy = bool(self._waiting)
        if not busy or self._open:
            call = self.begin({"call": "close", "env": number}, life, _CLOSE_SECONDS)
            while not busy and call.reply is None and call.failure is None:
                self._wait()
        if not self._open:
            self.kill("the environment was closed")

    def kill(self, why: str) -> None:
        """Kills the process, if there is one; the calls that wait for it fail."""
        process, self._process = self._process, None
        self._gone = why
        self._open.clear()
        for call in self._waiting:
            call.failure = self._failure(call, "crash", why)
        self._waiting.clear()
        if process is not None:
            process.kill()

    def _failure(self, call: Call, kind: FailureKind, what: str) -> WorkerFailure:
        return WorkerFailure(kind, f"{self._name}.{call.text}: {kind}: {what}")

    def _wait(self) -> None:
        """Waits for replies, or for the failure of the oldest call."""
        assert self._process is not None
        process, oldest = self._process, self._waiting[0]
        since = time.monotonic() if process.is_sending else self._oldest_since
        try:
            replies = process.receive(since + oldest.timeout)
        except TimeoutError:
            process.ask_where_it_is()
            self.fail(oldest, "timeout", f"no answer within {oldest.timeout:g} s")
        except HungUp as error:
            self.fail(oldest, "crash", process.exit_status() or str(error))
        except WireError as error:
            self.fail(oldest, "garbage", str(error))
        else:
            self._oldest_since = time.monotonic()
            for reply in replies:
                if self._process is not None:
                    self._take(reply)

    def _take(self, reply: Any) -> None:
        if not self._waiting or not isinstance(reply, dict) or reply.get("id") != self._waiting[0].id:
            if self._waiting:
                self.fail(self._waiting[0], "garbage", f"a message that answers no call: {str(reply)[:80]!r}")
            else:
                self.kill(f"the process sent a message that answers no call: {str(reply)[:80]!r}")
            return
        call = self._waiting.popleft()
        if "error" in reply:
            kind: FailureKind = "garbage" if reply.get("kind") == "garbage" else "exception"
            self.fail(call, kind, f"{reply['error']}", str(reply.get("traceback", "")))
        else:
            call.reply = reply
