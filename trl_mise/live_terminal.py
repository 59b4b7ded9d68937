"""A panel at the bottom of a terminal, and everything that others print above it."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

REFRESH_PER_SECOND = 4


class AboveThePanel:
    """A standard stream whose lines go above a panel; the stream itself once the panel is gone.

    A line that is written over and over (a progress bar) is shown as it was last, when it is complete.

    Args:
        stream (`TextIO`): the terminal's.
        show (`Callable[[str], None]`): prints lines above the panel.
    """

    def __init__(self, stream: TextIO, show: Callable[[str], None]) -> None:
        self.stream = stream
        self._show: Callable[[str], None] | None = show
        self._rest = ""
        self._owner = os.getpid()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @property
    def _is_above(self) -> bool:
        # In a fork the panel's thread does not go on, and a lock may be held for ever.
        return self._show is not None and os.getpid() == self._owner

    def write(self, text: str) -> int:
        if self._show is None or not self._is_above:
            return self.stream.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        if lines:
            self._show("\n".join(_as_it_was_last(line) for line in lines))
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        """An incomplete line that somebody wants to be seen, a question for instance, is seen."""
        if self._show is None or not self._is_above:
            self.stream.flush()
        elif self._rest and "\r" not in self._rest:
            self._show(self._rest)
            self._rest = ""

    def detach_panel(self) -> None:
        """From now on the stream itself."""
        rest, self._rest, self._show = _as_it_was_last(self._rest), "", None
        if rest:
            self.stream.write(f"{rest}\n")
            self.stream.flush()


def _as_it_was_last(line: str) -> str:
    return line.rstrip("\r").rsplit("\r", 1)[-1]


class _Live(Live):
    """A terminal that is gone must not end what it was to show, nor what others print there."""

    def refresh(self) -> None:
        with contextlib.suppress(OSError):
            super().refresh()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            super().stop()


class Panel:
    """Keeps a renderable at the bottom of the terminal while others print.

    Args:
        console (`Console`): the terminal.
        drawn (`RenderableType`): rendered anew several times a second.
        stays (`bool`): leave the last state on the screen.
        refresh_per_second (`float`, *optional*): `None` draws only when asked to.
    """

    def __init__(
        self,
        console: Console,
        drawn: RenderableType,
        *,
        stays: bool = True,
        refresh_per_second: float | None = REFRESH_PER_SECOND,
    ) -> None:
        self.console = console
        self._live = _Live(
            drawn,
            console=console,
            auto_refresh=refresh_per_second is not None,
            refresh_per_second=refresh_per_second or REFRESH_PER_SECOND,
            transient=not stays,
            # rich would send a stdout that is a file to the terminal, and print a progress bar at every change.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._streams: dict[str, AboveThePanel] = {}
        self._handlers: list[tuple[Any, Any]] = []

    def start(self) -> None:
        self._live.start(refresh=True)
        self._redirect()

    def stop(self) -> None:
        """Gives the terminal back, with its cursor."""
        try:
            self._live.stop()
        finally:
            self._restore()

    def refresh(self) -> None:
        self._live.refresh()

    def show(self, text: str) -> None:
        """Prints lines above the panel, as they are."""
        with contextlib.suppress(OSError):
            self.console.print(Text.from_ansi(text), soft_wrap=True)

    def _redirect(self) -> None:
        """Streams that are the terminal; also in the hands of loggers, which took them long ago."""
        originals: dict[int, AboveThePanel] = {}
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if is_terminal(stream) and not isinstance(stream, AboveThePanel):
                self._streams[name] = originals[id(stream)] = AboveThePanel(stream, self.show)
                setattr(sys, name, self._streams[name])
        for handler in _stream_handlers():
            above = originals.get(id(handler.stream))
            if above is not None:
                self._handlers.append((handler, handler.stream))
                handler.stream = above

    def _restore(self) -> None:
        for name, above in self._streams.items():
            if getattr(sys, name) is above:
                setattr(sys, name, above.stream)
            above.detach_panel()
        for handler, stream in self._handlers:
            if isinstance(handler.stream, AboveThePanel):
                handler.stream = stream
        self._streams, self._handlers = {}, []


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal in which a cursor can be moved."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def _stream_handlers() -> list[Any]:
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]
