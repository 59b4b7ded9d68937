"""The other end of [`EnvironmentWorkers`]: a process in which environments live. Started by it, not by people."""

import contextlib
import faulthandler
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from .answers import InvalidAnswer, checked_reset, checked_step
from .base import EnvironmentFactory, TextEnv
from .worker_cleanup import MARK, kill_group, kill_marked, remove_directory, start_time, trim_log
from .worker_factory import unpack_factory
from .worker_wire import MAX_MESSAGE_BYTES, WireError, encode, receive, send

_WATCH_SECONDS = 0.5
_TRACEBACK_CHARS = 4000
_PLAIN = (bool, int, float, type(None))


def serve(wire: int, lifeline: int) -> None:
    """Answers calls until the trainer is gone, and then takes everything that it started down with it.

    Args:
        wire (`int`): descriptor of the socket to the trainer.
        lifeline (`int`): descriptor of a pipe whose other end the trainer holds and never closes while it lives.
    """
    for descriptor in (wire, lifeline):
        os.set_inheritable(descriptor, False)
    directory, log = os.environ[MARK], os.dup(1)
    faulthandler.enable(log, all_threads=False)
    threading.Thread(target=_watch, args=(lifeline, log, directory), daemon=True).start()
    try:
        host = _Host(receive(wire))
        while True:
            request = receive(wire)
            send(wire, _reply(host, request))
    except WireError:
        pass
    finally:
        _end_all(directory)


def _watch(lifeline: int, log: int, directory: str) -> None:
    """Notices the end of the trainer, however it ends; keeps the log short, and writes a traceback there if asked."""
    poller = select.poll()
    poller.register(lifeline, select.POLLIN)
    while True:
        for _, events in poller.poll(_WATCH_SECONDS * 1000):
            if not events & select.POLLIN or not os.read(lifeline, 1):
                _end_all(directory)
            with contextlib.suppress(Exception):
                os.write(log, _where_it_is().encode("utf-8", "backslashreplace"))
        trim_log(log)


def _where_it_is() -> str:
    """Where the environment has got to, as a traceback."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    return "".join(["Traceback of the call (most recent call last):\n", *traceback.format_stack(frame)])


def _end_all(directory: str) -> None:
    """What the trainer does where it still can."""
    try:
        kill_marked(directory, start_time(os.getpid()))
        remove_directory(directory)
    finally:
        kill_group(os.getpgrp())


def _reply(host: "_Host", request: Mapping[str, Any]) -> bytes:
    number = request["id"]
    try:
        return _encoded({"id": number, **host.answer(request)})
    except InvalidAnswer as error:
        failure = {"error": str(error), "kind": "garbage"}
    except BaseException as error:  # an environment may as well call sys.exit
        failure = {"error": _in_short(error), "kind": "exception", "traceback": _traceback()}
    return encode({"id": number, **{name: _plain_text(text) for name, text in failure.items()}})


def _encoded(reply: Mapping[str, Any]) -> bytes:
    try:
        data = encode(reply)
    except Exception as error:
        raise InvalidAnswer(f"the answer cannot be written as JSON ({_in_short(error)})") from error
    if len(data) > MAX_MESSAGE_BYTES:
        raise InvalidAnswer(
            f"the answer takes {len(data):,} bytes as JSON, more than {MAX_MESSAGE_BYTES:,}; shorten info"
        )
    return data


class _Host:
    """The environments of this process, by number."""

    def __init__(self, greeting: Mapping[str, Any]) -> None:
        self._greeting = greeting
        self._factory: EnvironmentFactory | None = None
        self._envs: dict[int, TextEnv] = {}
        self._listings: dict[int, Callable[[], Any]] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        number, call = request["env"], request["call"]
        if call == "admissible":
            return {"actions": [_plain_text(str(action)) for action in self._listings[number]()]}
        self._listings.pop(number, None)
        if call == "close":
            self._close(number)
            return {}
        env = self._env(number)
        if call == "reset":
            return self._packed(number, checked_reset, env.reset(seed=request["seed"], options=request["options"]))
        return self._packed(number, checked_step, env.step(request["action"]))

    def _env(self, number: int) -> TextEnv:
        """The environment of this number; an error of its factory is an error of its first `reset`."""
        if self._factory is None:
            self._factory = unpack_factory(self._greeting)
        if number not in self._envs:
            self._envs[number] = self._factory()
        return self._envs[number]

    def _close(self, number: int) -> None:
        env = self._envs.pop(number, None)
        try:
            if env is not None:
                env.close()
        except Exception:  # it is gone all the same, and the others live on
            traceback.print_exc()

    def _packed(self, number: int, check: Callable[[Any], Any], answer: Any) -> dict[str, Any]:
        checked = check(answer)
        try:
            info = self._plain_info(number, checked.info)
        except Exception as error:
            raise InvalidAnswer(f"info cannot be written as JSON ({_in_short(error)})") from error
        # Not asdict: it would copy what stands behind a callable, the whole environment.
        return {"answer": {**{field.name: getattr(checked, field.name) for field in fields(checked)}, "info": info}}

    def _plain_info(self, number: int, info: Mapping[str, Any]) -> dict[str, Any]:
        """`info` without what cannot travel: a callable is called when the trainer asks, the rest is written out."""
        listing = info.get("admissible_actions")
        plain = {_plain_text(str(key)): _plain(value) for key, value in info.items()}
        if callable(listing):
            self._listings[number] = listing
            plain["admissible_actions"] = {"lazy": True}
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _plain_text(value)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {_plain_text(str(key)): _plain(item) for key, item in value.items()}
    # NumPy's numbers and arrays, without an import of NumPy.
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain(value.tolist())
    return _plain_text(repr(value))


def _plain_text(text: str) -> str:
    """The text, with what UTF-8 cannot hold (half of a character) as an escape."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _in_short(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:2000]
    except Exception:
        return f"{type(error).__name__}, whose message cannot be shown"


def _traceback() -> str:
    try:
        return traceback.format_exc()[-_TRACEBACK_CHARS:]
    except Exception:
        return ""
