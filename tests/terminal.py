"""A terminal small enough to be read here: what a program that writes to a pty leaves on the screen."""

import codecs
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable
from fcntl import ioctl

_CODE = re.compile(r"\x1b\[([?]?[0-9;]*)([A-Za-z])")
_BEGUN = re.compile(r"\x1b(\[[?0-9;]*)?$")


class Screen:
    """Lines, a cursor, and the codes that rich and tqdm use; it never scrolls, and everything written stays readable.

    Args:
        width (`int`): columns; longer lines are wrapped, as terminals do.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines: list[list[tuple[str, str]]] = [[]]  # (character, codes of its style)
        self.row = self.column = 0
        self.shows_cursor = True
        self.unknown: set[str] = set()
        self._style = self._rest = ""

    def feed(self, text: str) -> None:
        text, position = self._rest + text, 0
        begun = _BEGUN.search(text)
        self._rest = begun[0] if begun else ""
        end = len(text) - len(self._rest)
        while position < end:
            match = _CODE.match(text, position)
            if match:
                self._code(match[1], match[2])
                position = match.end()
            else:
                self._character(text[position])
                position += 1

    def _character(self, character: str) -> None:
        if character == "\n":
            self._down()
        elif character == "\r":
            self.column = 0
        else:
            if self.column == self.width:
                self._down()
                self.column = 0
            line = self.lines[self.row]
            line.extend([(" ", "")] * (self.column + 1 - len(line)))
            line[self.column] = (character, self._style)
            self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])

    def _code(self, arguments: str, code: str) -> None:
        if code == "A":
            self.row = max(0, self.row - int(arguments or 1))
        elif code == "K":
            line = self.lines[self.row]
            del line[0 if arguments == "2" else self.column :]
        elif code == "m":
            self._style = "" if arguments in ("", "0") else f"{self._style}\x1b[{arguments}m"
        elif (arguments, code) in (("?25", "l"), ("?25", "h")):
            self.shows_cursor = code == "h"
        else:
            self.unknown.add(arguments + code)

    @property
    def text(self) -> str:
        return "\n".join("".join(character for character, _ in line).rstrip() for line in self.lines)

    @property
    def coloured(self) -> list[str]:
        """The lines with the codes of their styles."""
        return ["".join(f"{style}{character}\x1b[0m" for character, style in line) for line in self.lines]


def run_in_terminal(
    command: list[str],
    env: dict[str, str],
    columns: int = 80,
    timeout: float = 300,
    until: Callable[[Screen], bool] = lambda screen: False,
) -> Screen:
    """Runs a command in a pty and returns what is on the screen afterwards.

    Args:
        command (`list[str]`), env (`dict[str, str]`): what is run.
        columns (`int`): of the terminal.
        timeout (`float`): seconds after which the command is killed.
        until (`Callable[[Screen], bool]`): interrupts the command when it is true, and returns what is there then.
    """
    parent, child = pty.openpty()
    ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=env, start_new_session=True)
    os.close(child)
    watchdog = threading.Timer(timeout, process.kill)
    watchdog.start()
    screen, decoder = Screen(columns), codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := _read(parent):
            screen.feed(decoder.decode(chunk))
            if until(screen):
                break
        process.send_signal(signal.SIGINT)
        while _read(parent):
            pass  # or it could not write its last words
        process.wait()
    finally:
        watchdog.cancel()
        os.close(parent)
    return screen


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""
