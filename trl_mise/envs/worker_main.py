"""The other end of [`EnvironmentWorkers`]: a process in which environments live. Started by it, not by people."""

import base64
import os
import pickle
import runpy
import shutil
import signal
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from .answers import InvalidAnswer, ResetAnswer, StepAnswer, checked_reset, checked_step
from .base import TextEnv
from .worker_wire import WireError, receive, send

_PLAIN = (str, bool, int, float, type(None))


def serve(wire_fd: int, lifeline_fd: int) -> None:
    """Answers calls until the trainer is gone, and then takes everything that it started down with it."""
    os.set_inheritable(wire_fd, False)
    os.set_inheritable(lifeline_fd, False)
    directory = os.getcwd()
    threading.Thread(target=_die_with_the_trainer, args=(lifeline_fd, directory), daemon=True).start()
    sock = socket.socket(fileno=wire_fd)
    try:
        greeting = receive(sock)
        host: _Host | None = None
        while True:
            request = receive(sock)
            try:
                host = host or _Host(_load_factory(greeting))
                answer = host.answer(request)
            except InvalidAnswer as error:
                answer = {"error": str(error), "kind": "garbage"}
            except BaseException as error:  # an environment may as well call sys.exit
                answer = {"error": _in_short(error), "kind": "exception", "traceback": _tail(traceback.format_exc())}
            send(sock, {"id": request["id"], **answer})
    except WireError:
        pass
    finally:
        _end_all(directory)


def _die_with_the_trainer(lifeline_fd: int, directory: str) -> None:
    """The trainer holds the other end; it closes when the trainer ends, however it ends."""
    while os.read(lifeline_fd, 1):
        pass
    _end_all(directory)


def _end_all(directory: str) -> None:
    """What the trainer does where it still can."""
    shutil.rmtree(directory, ignore_errors=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _load_factory(greeting: Mapping[str, Any]) -> Callable[[], TextEnv]:
    main = greeting["main"]
    if main is not None:
        # As multiprocessing does: what the script defines, without what it does under `if __name__ == "__main__"`.
        run = runpy.run_path if main["kind"] == "path" else runpy.run_module
        module = types.ModuleType("__mp_main__")
        module.__dict__.update(run(main["name"], run_name="__mp_main__"))
        sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    factory: Callable[[], TextEnv] = pickle.loads(base64.b64decode(greeting["factory"]))
    return factory


class _Host:
    """The environments of this process, by number."""

    def __init__(self, factory: Callable[[], TextEnv]) -> None:
        self._factory = factory
        self._envs: dict[int, TextEnv] = {}
        self._listings: dict[int, Callable[[], Any]] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        number, call = request["env"], request["call"]
        if call == "admissible":
            return {"actions": [str(action) for action in self._listings[number]()]}
        if call == "close":
            env = self._envs.pop(number, None)
            if env is not None:
                env.close()
            return {}
        if number not in self._envs:
            self._envs[number] = self._factory()
        env = self._envs[number]
        if call == "reset":
            answer: ResetAnswer | StepAnswer = checked_reset(
                env.reset(seed=request["seed"], options=request["options"])
            )
        else:
            answer = checked_step(env.step(request["action"]))
        # Not asdict: it would copy what stands behind a callable, the whole environment.
        named = {field.name: getattr(answer, field.name) for field in fields(answer)}
        return {"answer": {**named, "info": self._plain_info(number, answer.info)}}

    def _plain_info(self, number: int, info: Mapping[str, Any]) -> dict[str, Any]:
        """`info` without what cannot travel: a callable is called when the trainer asks, the rest is written out."""
        listing = info.get("admissible_actions")
        plain = {str(key): _plain(value) for key, value in info.items()}
        if callable(listing):
            self._listings[number] = listing
            plain["admissible_actions"] = {"lazy": True}
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    # NumPy's numbers and arrays, without an import of NumPy.
    return _plain(value.tolist()) if type(value).__module__ == "numpy" and hasattr(value, "tolist") else repr(value)


def _in_short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _tail(text: str, limit: int = 4000) -> str:
    return text[-limit:]
