"""An event loop on a thread of its own, for environments whose methods are coroutines."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable
from typing import Any

_JOIN_SECONDS = 5.0


class LoopThread:
    """Runs coroutines to their end, all on one loop.

    The loop lives on its own thread because the caller's may have a running loop already (a notebook), and because a
    connection belongs to the loop that opened it and must be served between the calls too. Started when first needed.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def result(self, value: Any) -> Any:
        """The value itself, or what it turns out to be if it is awaitable; raises what the coroutine raises."""
        if not inspect.isawaitable(value):
            return value
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(self._loop,), name="trl-mise-env-loop", daemon=True)
            self._thread.start()
        answer, exit_request = asyncio.run_coroutine_threadsafe(_wait_for(value), self._loop).result()
        if exit_request is not None:
            raise exit_request
        return answer

    def close(self) -> None:
        """Stops the loop; may be called twice."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_JOIN_SECONDS)
        if not thread.is_alive():
            loop.close()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Runs the loop until it is stopped. `exit()` in one of its tasks must not end the thread: somebody waits."""
    while True:
        try:
            return loop.run_forever()
        except SystemExit:
            continue  # the task has it too, and hands it to whoever awaits it


async def _wait_for(awaitable: Awaitable[Any]) -> tuple[Any, SystemExit | None]:
    """(what was awaited, None), or (None, the exit that was asked for), which asyncio would not pass on."""
    try:
        return await awaitable, None
    except SystemExit as error:
        return None, error
