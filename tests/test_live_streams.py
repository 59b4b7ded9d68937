"""What others print while there is a panel: above it, complete, and into their own streams again afterwards."""

import io
import logging
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from terminal import Screen
from tqdm import tqdm

from trl_mise.live_terminal import AboveThePanel, Panel, is_terminal


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def above(stream: io.StringIO | None = None) -> tuple[AboveThePanel, list[str]]:
    shown: list[str] = []
    return AboveThePanel(stream or Tty(), shown.append), shown


def test_lines_are_shown_when_they_are_complete() -> None:
    stream, shown = above()
    print("one", "two", file=stream)
    stream.write("half")
    assert shown == ["one two"]
    stream.write(" a line\nand ")
    stream.writelines(["more\n", "x\r\n"])
    assert shown == ["one two", "half a line", "and more\nx"]


def test_a_question_is_seen_before_it_is_answered() -> None:
    stream, shown = above()
    stream.write("(Pdb) ")
    stream.flush()
    assert shown == ["(Pdb) "]


def test_a_progress_bar_is_one_line() -> None:
    stream, shown = above()
    for _ in tqdm(range(100), file=stream, desc="bar", mininterval=0.0):
        pass
    assert len(shown) == 1 and shown[0].startswith("bar: 100%")
    for _ in tqdm(range(100), file=stream, desc="passing", mininterval=0.0, leave=False):
        pass
    print("next", file=stream)
    assert shown[1:] == ["next"]


def test_without_the_panel_it_is_the_stream_itself() -> None:
    terminal = Tty()
    stream, shown = above(terminal)
    stream.write("kept")
    stream.detach_panel()
    stream.write("after")
    stream.flush()
    assert shown == [] and terminal.getvalue() == "kept\nafter"
    assert stream.isatty() and stream.getvalue() == terminal.getvalue()


def test_a_fork_writes_to_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Tty()
    stream, shown = above(terminal)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    stream.write("child\n")
    assert shown == [] and terminal.getvalue() == "child\n"


def test_streams_and_handlers_are_taken_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err, file = Tty(), Tty(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    handlers = [logging.StreamHandler(err), logging.StreamHandler(file)]
    logger = logging.getLogger("test_live")
    for handler in handlers:
        logger.addHandler(handler)
    console = Console(file=err, width=80, force_terminal=True, color_system=None)
    panel = Panel(console, "the panel", refresh_per_second=None)
    panel.start()
    try:
        print("printed")
        print("\x1b[31mto stderr\x1b[0m [markup] https://example.org", file=sys.stderr)
        logger.warning("logged")
        assert isinstance(handlers[0].stream, AboveThePanel) and handlers[1].stream is file
    finally:
        panel.stop()
        for handler in handlers:
            logger.removeHandler(handler)
    assert (sys.stdout, sys.stderr) == (out, err) and handlers[0].stream is err
    screen = Screen(80)
    screen.feed(err.getvalue().replace("\n", "\r\n"))
    assert screen.text.split("\n")[:4] == ["printed", "to stderr [markup] https://example.org", "logged", "the panel"]
    assert out.getvalue() == "" and file.getvalue() == "logged\n"


def test_a_stdout_that_is_a_file_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(sys, "stderr", Tty())
    panel = Panel(Console(file=sys.stderr, force_terminal=True), "the panel", refresh_per_second=None)
    panel.start()
    print("result")
    panel.stop()
    assert file.getvalue() == "result\n"


def test_a_stream_that_is_closed_or_missing_is_no_terminal() -> None:
    closed = Tty()
    closed.close()
    assert not is_terminal(None) and is_terminal(Tty()) == (os.environ.get("TERM") not in ("dumb", "unknown"))
    monkey: Any = SimpleNamespace(isatty=closed.tell)
    assert not is_terminal(monkey)
