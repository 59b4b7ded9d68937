"""What is known of a run while it goes on: how far it is, how fast, how well. No torch."""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]

RECENT = 10
"""Updates whose mean says how long the others will take."""

SHOWN = {
    "success": ("env/success",),
    "return": ("env/return",),
    "auroc": ("hindsight/auroc",),
    "gate": ("hindsight/gate",),
    "kl": ("objective/kl", "kl"),
}
"""What it is called, and how it is logged by PPO, or else by GRPO."""

_EVALUATED = re.compile(r"(?P<split>[^/]+)_(?P<measure>success|return|reward|episodes)")


@dataclass(frozen=True)
class Event:
    """Something that was said of an update.

    Args:
        update (`int`): it was about.
        kind (`str`): `"health"`, `"skipped"`, ...
        message (`str`): of one line or several.
    """

    update: int
    kind: str
    message: str


class RunProgress:
    """Numbers of a run, as they come in. One thread writes, another may draw: what is iterated over is replaced.

    Args:
        clock (`Callable[[], float]`): seconds of a clock that never goes back.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.unit = "update"
        self.total = self.done = 0
        self.episodes: int | None = None
        self.phase, self.detail = "", ""
        self.values: dict[str, float] = {}
        self.evaluations: dict[str, dict[str, float]] = {}
        self.history: dict[str, list[float]] = {}
        self.events: list[Event] = []
        self.is_training = False
        self._durations: tuple[float, ...] = ()
        self._started = self._since = clock()
        self._ended: float | None = None

    def begin(self, done: int, total: int, unit: str = "update") -> None:
        """A run starts, or goes on after `done` updates."""
        self.unit, self.done, self.total = unit, done, total
        self.is_training, self._ended = True, None
        self.values, self.evaluations, self.history, self.events = {}, {}, {}, []
        self._durations = ()
        self._started = self._since = self.clock()

    def advance(self, done: int) -> None:
        """Some updates are over."""
        now, steps = self.clock(), done - self.done
        if steps > 0:
            self._durations = (*self._durations, *[(now - self._since) / steps] * min(steps, RECENT))[-RECENT:]
            self.done, self._since = done, now

    def end(self) -> None:
        """The clock stops."""
        self.is_training, self._ended = False, self.clock()

    def measure(self, metrics: Mapping[str, float]) -> None:
        """Numbers of training, by the names that they are logged under; others are passed over."""
        if "episode" in metrics:
            self.episodes = int(metrics["episode"])
        for label, names in SHOWN.items():
            value = next((metrics[name] for name in names if name in metrics), math.nan)
            if math.isfinite(value):
                self.values = {**self.values, label: float(value)}
                self.history.setdefault(label, []).append(float(value))

    def evaluate(self, metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Numbers of evaluations among those that are logged: `{"eval": {"success": .4, ...}}`."""
        found: dict[str, dict[str, float]] = {}
        for name, value in metrics.items():
            match = _EVALUATED.fullmatch(name)
            if match and math.isfinite(value):
                found.setdefault(match["split"], {})[match["measure"]] = float(value)
        self.evaluations = {**self.evaluations, **found}
        for split, measured in found.items():
            for measure, value in measured.items():
                self.history.setdefault(f"{split} {measure}", []).append(value)
        return found

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return (self.clock() if self._ended is None else self._ended) - self._started

    @property
    def seconds_per_update(self) -> float | None:
        """Mean of the last updates, evaluations between them included; `None` before the first is over."""
        return sum(self._durations) / len(self._durations) if self._durations else None

    @property
    def eta(self) -> float | None:
        """Seconds that the rest will take, if it goes on as lately."""
        each = self.seconds_per_update
        if each is None or self.total <= 0:
            return None
        return max(0.0, (self.total - self.done) * each - (self.clock() - self._since))


def duration(seconds: float) -> str:
    """`1:42`, `2:03:04`, `3d 2:03:04`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    text = f"{hour}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
    return f"{days}d {text}" if days else text


def pace(seconds: float) -> str:
    """Seconds of an update in three digits: `0.021 s`, `2.1 s`, `215 s`."""
    digits = 0 if seconds >= 100 else 1 if seconds >= 1 else 2 if seconds >= 0.1 else 3
    return f"{seconds:.{digits}f} s"


def trend(values: Sequence[float], margin: float = 0.05) -> int:
    """1 where the last five values are above the five before, -1 where below, 0 where it may be chance."""
    if len(values) < 2:
        return 0
    size = min(5, len(values) // 2)
    now, before = sum(values[-size:]) / size, sum(values[-2 * size : -size]) / size
    return 0 if abs(now - before) < margin else 1 if now > before else -1


def sparkline(values: Sequence[float], width: int) -> str:
    """Shares in [0, 1] as bars of a fixed scale; where there are more than `width`, a bar is the mean of several."""
    bars, n = "▁▂▃▄▅▆▇█", len(values)
    count = min(n, width)
    groups = [values[i * n // count : (i + 1) * n // count] for i in range(count)]
    means = [sum(group) / len(group) for group in groups]
    return "".join(bars[max(0, min(len(bars) - 1, int(mean * len(bars))))] for mean in means)


def plain_line(run: RunProgress, dot: str = "·") -> str:
    """One line about a run that goes on: `update 12/60 · 384 episodes · success 0.31 · ... · ETA 1:42`."""
    parts = [f"{run.unit} {run.done}/{run.total}"]
    if run.episodes is not None:
        parts.append(f"{run.episodes} episodes")
    parts += [f"{label} {run.values[label]:.2f}" for label in ("success", "return", "auroc") if label in run.values]
    parts += [f"{split} success {of['success']:.2f}" for split, of in run.evaluations.items() if "success" in of]
    if run.seconds_per_update is not None:
        parts.append(f"{pace(run.seconds_per_update)}/{run.unit}")
    if run.eta is not None:
        parts.append(f"ETA {duration(run.eta)}")
    return f" {dot} ".join(parts)


def evaluation_line(run: RunProgress, split: str, measured: Mapping[str, float], dot: str = "·") -> str:
    """One line about an evaluation: `eval after update 12 · success 0.40 · return 0.42 · 128 episodes`."""
    numbers = [f"{name} {value:.2f}" for name, value in measured.items() if name != "episodes"]
    episodes = [f"{measured['episodes']:.0f} episodes"] if "episodes" in measured else []
    when = f" after {run.unit} {run.done}" if run.total else ""  # none in this process
    return f" {dot} ".join([f"{split}{when}", *numbers, *episodes])
