"""Draws `docs/assets/terminal.png`: the live view of a training run in the kitchen, half way through.

    python docs/terminal_picture.py        # needs chromium, to make a picture of a page

The run is a real one, in a terminal of its own (`tests/terminal.py`), and is interrupted once the picture is taken.
"""

import argparse
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from terminal import Screen, run_in_terminal  # noqa: E402

COMMAND = "python examples/kitchen.py --output_dir runs/kitchen --eval_strategy steps --eval_steps 10"
MARGIN, TITLE, LINE = 16, 36, 16.3
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: transparent; }}
div {{ position: fixed; inset: 0; border-radius: 10px; background: #292929; color: #c5c8c6; overflow: hidden; }}
div::before {{ content: "\\25CF \\25CF \\25CF"; display: block; padding: 10px 16px; font-size: 13px; color: #5a5a5a; }}
pre {{ margin: 0 16px; font: 14px/16.3px "DejaVu Sans Mono", monospace; }}
</style><div><pre>$ {command}\n{text}</pre></div>"""
"""Lines as high as the font's: the frame has no gaps."""


def half_way(update: int) -> Callable[[Screen], bool]:
    """Whether the panel is drawn to its end and shows a rollout, after so many updates or more."""
    shown = re.compile(r" (\d+)/60 .*\n│ rollout \d+/32 episodes.*\n(?:│.*\n)+╰─+╯\n?$")

    def is_shown(screen: Screen) -> bool:
        found = shown.search(screen.text)
        return found is not None and int(found[1]) >= update

    return is_shown


def record(update: int, columns: int) -> Screen:
    """The screen of a run after so many updates."""
    script, *options = COMMAND.split()[1:]
    with tempfile.TemporaryDirectory() as folder:
        return run_in_terminal(
            [sys.executable, str(ROOT / script), *[option.replace("runs/kitchen", folder) for option in options]],
            {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"},
            columns,
            timeout=600,
            until=half_way(update),
        )


def draw(lines: list[str], columns: int, path: Path) -> None:
    """Lines with codes of colours as a picture of a terminal."""
    with open(os.devnull, "w") as nowhere:
        console = Console(width=columns, record=True, file=nowhere, force_terminal=True)
        for line in lines:
            console.print(Text.from_ansi(line), soft_wrap=True)
        text = console.export_html(theme=SVG_EXPORT_THEME, code_format="{code}", inline_styles=True)
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("chromium is not there: install it to make a picture of the page")
    width, height = round(columns * 8.43) + 2 * MARGIN, round((len(lines) + 2) * LINE) + TITLE + MARGIN // 2
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(
            PAGE.format(command=html.escape(COMMAND).replace(" --eval", " \\\n    --eval", 1), text=text),
            encoding="utf-8",
        )
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"),
                *("--default-background-color=00000000", "--force-device-scale-factor=2"),
                *(f"--window-size={width},{height}", f"--screenshot={path}", page.as_uri()),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", type=int, default=20, help="after which the picture is taken")
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/assets/terminal.png")
    args = parser.parse_args()
    screen = record(args.update, args.columns)
    lines = screen.coloured
    first = next((i for i, line in enumerate(screen.text.split("\n")) if line.startswith("eval")), None)
    if first is None:
        sys.exit(f"the run ended before update {args.update}:\n{screen.text}")
    draw([line for line in lines[first:] if line], args.columns, args.output.resolve())
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
