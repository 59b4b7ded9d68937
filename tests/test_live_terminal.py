"""The live view in a terminal of its own, while others print, and when it is interrupted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trl_mise

if sys.platform == "win32":
    pytest.skip("there are no ptys", allow_module_level=True)

from terminal import Screen, run_in_terminal

SCRIPT = Path(__file__).with_name("live_training.py")
ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(trl_mise.__file__).parents[1]), str(SCRIPT.parent)]),
    "PYTHONWARNINGS": "ignore,default::UserWarning",
    "TERM": "xterm-256color",
    "OMP_NUM_THREADS": "1",
}
PANEL = re.compile(r"^╭─ MISE ─+╮\n(│.*│\n)+╰─+╯$", re.MULTILINE)


def between(screen: Screen, first: str, last: str) -> str:
    text = screen.text
    return text[text.index(f"-- {first}\n") + len(f"-- {first}\n") : text.index(f"-- {last}")]


def test_what_is_left_on_the_screen(tmp_path: Path) -> None:
    screen = run_in_terminal([sys.executable, str(SCRIPT), str(tmp_path)], ENV)
    assert screen.unknown == set() and screen.shows_cursor
    assert re.fullmatch(r"eval · success .* · 4 episodes\n", between(screen, "start", "evaluated"))

    trained = between(screen, "evaluated", "trained")
    (panel,) = PANEL.finditer(trained)
    above = trained[: panel.start()].splitlines()
    assert above[:3] == ["first line", "second line", "to stderr"]
    assert re.fullmatch(r"their bar: 100%\|.*\| 50/50 \[.*\]", above[3])
    assert above[4:] == ["logged: by a handler", "HindsightHealthWarning: update 3: ill judge: it praises everything"]
    assert trained[panel.end() :] == "\n"
    for part in ("4/4  100%", "│ done ", "32 episodes", "success", "eval success", "! update 3: ill judge"):
        assert part in panel[0]

    interrupted = between(screen, "trained", "interrupted")
    assert PANEL.fullmatch(interrupted.rstrip("\n")) and "│ stopped " in interrupted and "1/4" in interrupted


def test_into_a_pipe_go_lines(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], env=ENV, capture_output=True, check=True)
    text = run.stderr.decode("utf-8")
    assert "\x1b" not in text and "╭" not in text
    ours = [line for line in text.splitlines() if line.startswith(("training", "update"))]
    assert [line.split(" · ")[0] for line in ours] == [
        "training: 4 updates",
        *[f"update {n}/4" for n in (1, 2, 3, 4)],
        ours[5],
        "training: 4 updates",
        "update 1/4",
        ours[8],
    ]
    assert ours[5].startswith("training done: 4/4") and ours[8].startswith("training stopped: 1/4")
    assert "HindsightHealthWarning: update 3: ill judge: it praises everything\n" in text
    assert run.stdout.decode("utf-8").splitlines()[-1] == "-- interrupted"
