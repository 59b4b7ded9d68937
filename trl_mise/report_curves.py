"""What a chart is made of: series of points, and the measures of a run over its updates. No torch."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .report_statistics import Point, by_update, metrics_of_episodes, thinned
from .run_data import EpisodeRecord, RunData

MOST_POINTS = 400

Look = Literal["line", "faint", "dots", "bar", "diagonal"]


@dataclass(frozen=True)
class Series:
    """One curve, or one set of bars.

    Args:
        name (`str`): in the legend.
        points (`Sequence[Point]`): what is drawn.
        look (`str`): how.
        colour (`int`): of the palette.
        counts (`Sequence[int]`): how many values are behind each point, where that is worth telling.
    """

    name: str
    points: Sequence[Point]
    look: Look = "line"
    colour: int = 0
    counts: Sequence[int] = ()


@dataclass(frozen=True)
class Chart:
    """One figure.

    Args:
        name (`str`): its anchor.
        title (`str`): above it.
        good (`str`): what good looks like, in a sentence or two.
        series (`Sequence[Series]`): what is drawn; empty: `missing` is said instead.
        x, y (`str`): what the axes are.
        unit (`bool`): values lie in [0, 1].
        categories (`Sequence[str]`): names of the places on the x axis, for bars.
        stacked (`bool`): bars and areas lie on one another.
        marked (`bool`): warnings are marked at their updates.
        note (`str`): a remark below.
        missing (`str`): why there is nothing to draw.
    """

    name: str
    title: str
    good: str
    series: Sequence[Series]
    x: str = "update"
    y: str = ""
    unit: bool = False
    categories: Sequence[str] = ()
    stacked: bool = False
    marked: bool = False
    note: str = ""
    missing: str = "Nothing was recorded for this chart."

    def as_json(self) -> dict[str, Any]:
        """What the page draws it from."""
        return {
            "name": self.name,
            "title": self.title,
            "x": self.x,
            "y": self.y,
            "unit": self.unit,
            "categories": list(self.categories),
            "stacked": self.stacked,
            "marked": self.marked,
            "series": [
                {
                    "name": s.name,
                    "look": s.look,
                    "colour": s.colour,
                    "x": [rounded(x) for x, _ in s.points],
                    "y": [rounded(y) for _, y in s.points],
                    "n": list(s.counts),
                }
                for s in self.series
            ],
        }

    @property
    def described(self) -> str:
        """The chart in words, for those who do not see it."""
        told = [f"{s.name}: {rounded(s.points[0][1])} to {rounded(s.points[-1][1])}" for s in self.series if s.points]
        return f"{self.title}. " + "; ".join(told) if told else self.title


@dataclass
class Curves:
    """The measures of a run over its updates: as logged; what was not, worked out from the episodes."""

    run: RunData
    logged: dict[str, list[Point]] = field(init=False)
    worked_out: dict[str, list[Point]] = field(init=False)

    def __post_init__(self) -> None:
        self.logged = _by_name((entry["step"], entry) for entry in self.run.log)
        per_update = by_update(self.run.training)
        utilities = self.run.utilities
        of_episodes = _by_name((float(u), metrics_of_episodes(e, utilities)) for u, e in per_update.items())
        self.worked_out = {name: points for name, points in of_episodes.items() if name not in self.logged}

    def __getitem__(self, name: str) -> list[Point]:
        return self.logged.get(name) or self.worked_out.get(name) or []

    def names(self) -> list[str]:
        return sorted({*self.logged, *self.worked_out})

    @property
    def step_name(self) -> str:
        return "optimizer step" if "GRPO" in str(self.run.info.get("trainer", "")) and self.logged else "update"

    def evaluations(self, measure: str) -> dict[str, list[Point]]:
        """`eval_<measure>` by the evaluation's name ("" where there is one), from the log or from its episodes."""
        pattern = re.compile(rf"eval_(?:(.+)_)?{measure}")
        matches = {name: pattern.fullmatch(name) for name in self.logged}
        found = {match[1] or "": self.logged[name] for name, match in matches.items() if match}
        if found:
            return found
        groups: dict[str, list[EpisodeRecord]] = {}
        for episode in self.run.evaluation:
            groups.setdefault(episode.split.removeprefix("eval").strip("_"), []).append(episode)
        for split, episodes in groups.items():
            points = [(float(u), metrics_of_episodes(e).get(f"env/{measure}")) for u, e in by_update(episodes).items()]
            known = [(x, y) for x, y in points if y is not None]
            if known:
                found[split] = known
        return found


def _by_name(entries: Iterable[tuple[float, Any]]) -> dict[str, list[Point]]:
    """Points of every measure in the order of the steps; of two values at a step the later one counts."""
    values: dict[str, dict[float, float]] = {}
    for step, entry in entries:
        for name, value in entry.items():
            if name not in ("step", "epoch", "episode"):
                values.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in values.items()}


def rounded(value: float) -> float:
    """Five significant digits: what an eye can tell, and a file can hold."""
    number = float(f"{value:.5g}")
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def over_updates(
    curves: Curves, name: str, title: str, good: str, lines: Sequence[tuple[str, str]], **more: Any
) -> Chart:
    """A chart of logged measures, `lines` of (measure, name in the legend)."""
    series = [
        Series(label, thinned(curves[measure], MOST_POINTS), colour=k)
        for k, (measure, label) in enumerate(lines)
        if curves[measure]
    ]
    return Chart(name, title, good, series, x=curves.step_name, note=note_on(curves, [m for m, _ in lines]), **more)


def note_on(curves: Curves, measures: Sequence[str]) -> str:
    notes = []
    most = max((len(curves[measure]) for measure in measures), default=0)
    if most > MOST_POINTS:
        notes.append(f"Each point is the mean of {-(-most // MOST_POINTS)} logged values.")
    if any(curves.worked_out.get(measure) for measure in measures):
        notes.append("Worked out from the episodes: the run logged no such measure.")
    return " ".join(notes)
