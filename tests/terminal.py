"""A terminal small enough to be read here: what a program that writes to a pty leaves on the screen."""

import os
import pty
import re
import struct
import subprocess
import termios
import threading
from fcntl import ioctl

_CODE = re.compile(r"\x1b\[([?]?[0-9;]*)([A-Za-z])|\x1b\]8;[^\x1b]*\x1b\\")


class Screen:
    """Lines, a cursor, and the codes that rich and tqdm use; it never scrolls, and everything written stays readable.

    Args:
        width (`int`): columns; longer lines are wrapped, as terminals do.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines: list[list[str]] = [[]]
        self.row = self.column = 0
        self.shows_cursor = True
        self.unknown: set[str] = set()

    def feed(self, text: str) -> None:
        position = 0
        while position < len(text):
            match = _CODE.match(text, position)
            if match:
                self._code(match[1] or "", match[2] or "")
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
            line.extend(" " * (self.column + 1 - len(line)))
            line[self.column] = character
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
        elif (arguments, code) in (("?25", "l"), ("?25", "h")):
            self.shows_cursor = code == "h"
        elif code not in ("m", ""):  # colours, links
            self.unknown.add(arguments + code)

    @property
    def text(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines)


def run_in_terminal(command: list[str], env: dict[str, str], columns: int = 80, timeout: float = 300) -> Screen:
    """Runs a command in a pty and returns what is on the screen afterwards."""
    parent, child = pty.openpty()
    ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=env, start_new_session=True)
    os.close(child)
    watchdog = threading.Timer(timeout, process.kill)
    watchdog.start()
    written = b""
    try:
        while chunk := _read(parent):
            written += chunk
        process.wait()
    finally:
        watchdog.cancel()
        os.close(parent)
    screen = Screen(columns)
    # The terminal's driver has made CR LF of every LF.
    screen.feed(written.decode("utf-8"))
    return screen


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""
