"""One picture of the judge: its scores by step, its odds against what happened, its scores of won and lost steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import report_statistics

WON, LOST, GREY = "#1f7a4d", "#c8501e", "#888888"
BINS = 10
MOST_STEPS = 32

Judged = Sequence[tuple[np.ndarray, bool]]
"""`(T,)` scores of an episode's steps, NaN where unreadable, and whether it was won."""


def scores_by_step(judged: Judged, won: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean score of the k-th step over the won, or the lost, episodes that got so far.

    Returns:
        `(K,)` step indices and `(K,)` means, of at most [`MOST_STEPS`] steps.
    """
    episodes = [scores[:MOST_STEPS] for scores, outcome in judged if outcome == won]
    longest = max(map(len, episodes), default=0)
    table = np.full((len(episodes), longest), np.nan)
    for row, scores in zip(table, episodes, strict=True):
        row[: len(scores)] = scores
    counts = np.isfinite(table).sum(axis=0)
    steps = np.flatnonzero(counts)
    return steps, np.nansum(table, axis=0)[steps] / counts[steps]


def reliability(judged: Judged, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often episodes of a score are won, by bins of equal width.

    Returns:
        `(B,)` mean scores of the episodes in a bin, `(B,)` shares of them that were won, `(B,)` their numbers; empty
        bins are left out.
    """
    readable = [(scores[np.isfinite(scores)], won) for scores, won in judged]
    means = np.array([scores.mean() for scores, _ in readable if len(scores)])
    outcomes = np.array([won for scores, won in readable if len(scores)], dtype=float)
    filled = report_statistics.reliability(means, outcomes, bins)
    return (
        np.array([found.score for found in filled]),
        np.array([found.won for found in filled]),
        np.array([found.count for found in filled], dtype=int),
    )


def step_scores(judged: Judged, won: bool) -> np.ndarray:
    """`(S,)` readable scores of all steps of the won, or the lost, episodes."""
    scores = [scores for scores, outcome in judged if outcome == won]
    values = np.concatenate(scores) if scores else np.zeros(0)
    return values[np.isfinite(values)]


def draw_judge(judged: Judged) -> np.ndarray | None:
    """`(H, W, 3)` bytes of the picture; `None` without matplotlib (extra `examples`)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    # Without pyplot: no global state, no window, no backend of the user's is changed.
    figure = Figure(figsize=(10, 3.2), dpi=80, layout="tight")
    canvas = FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _draw_steps(left, judged)
    _draw_reliability(middle, judged)
    _draw_histograms(right, judged)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_steps(axes: Any, judged: Judged) -> None:
    for won, colour, label in ((True, WON, "won"), (False, LOST, "lost")):
        steps, means = scores_by_step(judged, won)
        if len(steps):
            axes.plot(steps, means, "o-", color=colour, markersize=3, label=label)
    axes.set(title="mean score by step", xlabel="step", ylim=(-0.02, 1.02))
    axes.legend(frameon=False, fontsize=8)


def _draw_reliability(axes: Any, judged: Judged) -> None:
    means, shares, counts = reliability(judged)
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    axes.scatter(means, shares, s=10 + 90 * counts / max(1, counts.max(initial=1)), color="#1f5a99")
    axes.set(title="reliability", xlabel="episode's mean score", ylabel="share won", xlim=(0, 1), ylim=(-0.02, 1.02))


def _draw_histograms(axes: Any, judged: Judged) -> None:
    for won, colour, label in ((True, WON, "won"), (False, LOST, "lost")):
        values = step_scores(judged, won)
        if len(values):
            axes.hist(values, bins=20, range=(0, 1), density=True, alpha=0.6, color=colour, label=label)
    axes.set(title="scores of steps", xlabel="score")
    axes.legend(frameon=False, fontsize=8)
