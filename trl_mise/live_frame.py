"""How a run looks in a terminal: a few lines that fit its width."""

import textwrap
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from .live_run import SHOWN, RunProgress, duration, pace, sparkline, trend

NARROW = 60
"""Columns below which a frame around the lines, and a bar beside the numbers, would take too much room."""
WIDEST = 100
NUM_EVENTS = 3
EVENT_LINES = 2
ARROWS = {1: ("↑", "green"), 0: ("", ""), -1: ("↓", "red")}
PHASES = {"evaluate": "log-probs", "calibrate": "calibration", "finish": "end of update"}
"""What the trainers call it, and what it is; the others are called what they are."""
OUTCOMES = ("success", "return")


class Frame:
    """Draws a run anew whenever it is rendered, as wide as the terminal then is.

    Args:
        run ([`RunProgress`]): what is drawn.
        title (`str`): stands in the frame's edge.
    """

    def __init__(self, run: RunProgress, title: str) -> None:
        self.run, self.title = run, title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDEST)
        is_framed = width >= NARROW
        lines = Group(*frame_lines(self.run, width - 4 if is_framed else width, ascii_only=options.ascii_only))
        drawn: RenderableType = lines
        if is_framed:
            drawn = Panel(lines, title=self.title, title_align="left", border_style="dim", width=width)
        # Nothing may be wider than it was measured: a wrapped line would break the way back up.
        for line in console.render_lines(drawn, options.update_width(width), pad=False):
            yield from Segment.adjust_line_length(line, width, pad=False)
            yield Segment.line()


def frame_lines(run: RunProgress, width: int, *, ascii_only: bool = False) -> list[RenderableType]:
    """The lines of a frame's inside.

    Args:
        run ([`RunProgress`]): what is drawn.
        width (`int`): columns.
        ascii_only (`bool`): no bars of eighths and no arrows, for terminals without them.
    """
    if not run.is_training and run.total == 0:
        return [_phase(run)]  # an evaluation outside of a run
    lines: list[RenderableType] = [*_progress(run, width, ascii_only), _work(run, width)]
    lines += [*_packed(_outcomes(run, ascii_only), width), *_packed(_judge(run), width)]
    lines += [_event(event.update, event.message, width, ascii_only) for event in run.events[-NUM_EVENTS:]]
    return lines


def _progress(run: RunProgress, width: int, ascii_only: bool) -> list[RenderableType]:
    bar = ProgressBar(total=max(1, run.total), completed=run.done, complete_style="cyan", finished_style="green")
    eta = run.eta
    left = "" if not run.is_training else "ETA -" if eta is None else f"ETA {duration(eta)}"
    share = f"{run.done / run.total:.0%}" if run.total else ""
    known = [f"{run.done}/{run.total}", share, duration(run.elapsed), left]
    numbers = Text("  ".join(text for text in known if text))
    numbers.highlight_words([left] if left else [], "bold cyan")
    grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
    grid.add_column(ratio=1)
    if width < NARROW - 4:
        grid.add_row(bar)
        return [grid, numbers]
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(bar, numbers)
    return [grid]


def _phase(run: RunProgress) -> Text:
    return Text.assemble(
        (PHASES.get(run.phase, run.phase) or "starting", "bold"), f" {run.detail}" if run.detail else ""
    )


def _work(run: RunProgress, width: int) -> Text:
    """What is being done, and at the right how much that is."""
    left = _phase(run)
    facts = [] if run.episodes is None else [f"{run.episodes} episodes"]
    if run.seconds_per_update is not None:
        facts.append(f"{pace(run.seconds_per_update)}/{run.unit}")
    right = Text("  ".join(facts), style="dim")
    gap = width - left.cell_len - right.cell_len
    return left if gap < 2 else Text.assemble(left, " " * gap, right)


def _outcomes(run: RunProgress, ascii_only: bool) -> list[Text]:
    """How the policy does, with the way it goes."""
    found: list[Text] = []
    for label in OUTCOMES:
        if label in run.values:
            found.append(_number(label, run.values[label], run.history[label], ascii_only))
    success = run.history.get("success", ())
    if len(success) > 1 and not ascii_only:
        found[0] = Text.assemble(found[0], " ", (sparkline(success, 16), "cyan"))
    for split, measured in run.evaluations.items():
        if "success" in measured:
            found.append(_number(f"{split} success", measured["success"], run.history[f"{split} success"], ascii_only))
    return found


def _judge(run: RunProgress) -> list[Text]:
    """How the judge does; whether up is good depends."""
    labels = [label for label in SHOWN if label in run.values and label not in OUTCOMES]
    return [_number(label, run.values[label], (), True) for label in labels]


def _number(label: str, value: float, history: Sequence[float], ascii_only: bool) -> Text:
    arrow, style = ARROWS[0 if ascii_only else trend(history)]
    return Text.assemble((f"{label} ", "dim"), (f"{value:.2f}", "bold"), (f" {arrow}" if arrow else "", style))


def _packed(parts: Sequence[Text], width: int) -> list[Text]:
    """As many of them on a line as fit."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + 3 + part.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], "   ", part)
        else:
            lines.append(part)
    return lines


def _event(update: int, message: str, width: int, ascii_only: bool) -> Text:
    """Its beginning: what is printed above says all of it."""
    said = " ".join(f"! update {update}: {message}".split())
    lines = textwrap.wrap(
        said, width, subsequent_indent="  ", max_lines=EVENT_LINES, placeholder=" ..." if ascii_only else " …"
    )
    return Text("\n".join(lines), style="yellow", no_wrap=True)
