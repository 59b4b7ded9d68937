"""What a report shows of the scores: reliability, distributions, means by step and by update. Pure functions, numpy.

AUROC, Brier score and ECE are those of [`metrics`]; here is what is drawn beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .metrics import (
    auroc,
    brier,
    ece,
    episode_metrics,
    kl_to_proxy,
    mutual_information,
    verdict_entropy,
    within_episode_spread,
)
from .run_data import EpisodeRecord
from .types import StopReason, Trajectory, Turn

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Episodes whose score lies in [low, high) (the last bin also holds `high`).

    Args:
        low, high (`float`): the bin.
        count (`int`): episodes in it, at least 1.
        score (`float`): their mean score.
        won (`float`): share of them that was won.
    """

    low: float
    high: float
    count: int
    score: float
    won: float


@dataclass(frozen=True, slots=True)
class StepMean:
    """Mean score of the steps `first` to `last` (from 0), over `count` scores."""

    first: int
    last: int
    mean: float
    count: int


def reliability(scores: np.ndarray, outcomes: np.ndarray, bins: int = 10) -> list[ReliabilityBin]:
    """What of [`metrics.ece`] can be drawn: its bins of equal width that are not empty.

    The sum over bins of `count / N * |score - won|` is the ECE.

    Args:
        scores (`np.ndarray`): `(N,)` scores in [0, 1].
        outcomes (`np.ndarray`): `(N,)` True = won.
        bins (`int`): number of bins.
    """
    scores, outcomes = np.asarray(scores, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    index = np.clip((scores * bins).astype(int), 0, bins - 1)
    found = []
    for b in range(bins):
        inside = index == b
        if inside.any():
            count, mean, won = int(inside.sum()), float(scores[inside].mean()), float(outcomes[inside].mean())
            found.append(ReliabilityBin(b / bins, (b + 1) / bins, count, mean, won))
    return found


def histogram(scores: np.ndarray, bins: int = 20) -> list[int]:
    """Counts in bins of equal width over [0, 1], closed on the left; the last one holds 1 as well."""
    index = np.clip((np.asarray(scores, dtype=np.float64) * bins).astype(int), 0, bins - 1)
    return [int(count) for count in np.bincount(index, minlength=bins)]


def means_by_step(episode_scores: Sequence[np.ndarray], most: int = 16) -> list[StepMean]:
    """[`metrics.score_by_step`] with the number of scores behind every mean.

    Args:
        episode_scores (`Sequence[np.ndarray]`): N arrays `(T_n,)`; NaN = none, left out.
        most (`int`): most means; of longer episodes neighbouring steps are taken together.
    """
    longest = max((len(scores) for scores in episode_scores), default=0)
    width = max(1, -(-longest // most))
    means = []
    for first in range(0, longest, width):
        values = np.concatenate([scores[first : first + width] for scores in episode_scores])
        known = values[np.isfinite(values)]
        if len(known):
            means.append(StepMean(first, min(first + width, longest) - 1, float(known.mean()), len(known)))
    return means


def judge_summary(episodes: Sequence[EpisodeRecord], utilities: Sequence[float] | None = None) -> dict[str, float]:
    """AUROC, Brier score, ECE and spread over all of these episodes, and how many those are.

    Args:
        episodes (`Sequence[EpisodeRecord]`): those without a score, and failed ones, do not count.
        utilities (`Sequence[float]`, *optional*): of the K verdicts; without them there is no `kl_to_proxy`.

    Returns:
        `dict[str, float]`: `episodes`, `won`, `steps`, and what can be said: `score_mean`, `score_gap`, `auroc`,
        `brier`, `ece`, `within_episode_spread`, `verdict_entropy`, `mutual_information`, `kl_to_proxy`.
    """
    judged = [e for e in episodes if e.mean_score is not None and not e.failed]
    if not judged:
        return {"episodes": 0.0, "won": 0.0, "steps": 0.0}
    scores = np.array([e.mean_score for e in judged], dtype=np.float64)
    won = np.array([e.success for e in judged])
    returns = np.array([e.episode_return for e in judged])
    by_episode = [e.scores[np.isfinite(e.scores)] for e in judged]
    found = {
        "score_mean": float(scores.mean()),
        "score_gap": float(scores[won].mean() - scores[~won].mean()) if won.any() and not won.all() else np.nan,
        "auroc": auroc(scores, won),
        "brier": brier(scores, returns) if returns.min() >= 0 and returns.max() <= 1 else np.nan,
        "ece": ece(scores, won),
        "within_episode_spread": within_episode_spread(by_episode),
    }
    rows = _verdict_rows(judged)
    if rows is not None:
        found |= {"verdict_entropy": verdict_entropy(rows), "mutual_information": mutual_information(rows)}
        if utilities is not None and len(utilities) == rows.shape[1]:
            found["kl_to_proxy"] = kl_to_proxy(rows, np.array(utilities), beta=1.0)
    counts = {"episodes": len(judged), "won": int(won.sum()), "steps": sum(map(len, by_episode))}
    return {name: float(value) for name, value in {**counts, **found}.items() if np.isfinite(value)}


def as_trajectory(episode: EpisodeRecord) -> Trajectory:
    """The record as the trainer's metrics want it; its tokens are not known."""
    known = {reason.value for reason in StopReason}
    turns = tuple(
        Turn(s.observation, s.action, s.reward, (0, 0), 0, action_valid=s.action_valid) for s in episode.steps
    )
    reason = StopReason(episode.stop_reason) if episode.stop_reason in known else StopReason.TERMINATED
    return Trajectory((), turns, reason, won=episode.success)


def metrics_of_episodes(
    episodes: Sequence[EpisodeRecord], utilities: Sequence[float] | None = None
) -> dict[str, float]:
    """`env/*`, `hindsight/*` and `mise/*` of one update, as the trainer would have logged them.

    Args:
        episodes (`Sequence[EpisodeRecord]`): of one update.
        utilities (`Sequence[float]`, *optional*): of the K verdicts; without them `mise/kl_to_proxy` is left out.
    """
    trajectories = [as_trajectory(episode) for episode in episodes]
    metrics = episode_metrics(trajectories)
    metrics.pop("env/action_tokens", None)
    judged = judge_summary(episodes, utilities)
    for name in ("episodes", "won", "steps"):
        judged.pop(name)
    of_theory = ("mutual_information", "kl_to_proxy")
    return metrics | {f"{'mise' if name in of_theory else 'hindsight'}/{name}": v for name, v in judged.items()}


def _verdict_rows(episodes: Sequence[EpisodeRecord]) -> np.ndarray | None:
    """`(S, K)` of the steps that have a score; `None` where one has no probabilities, or others than the rest."""
    rows = [step.verdict_probs for e in episodes for step in e.steps if step.score is not None]
    return np.array(rows) if len({len(row) for row in rows}) == 1 and rows[0] else None


def moving_average(points: Sequence[Point], window: int) -> list[Point]:
    """Mean of each value and the `window - 1` before it (of fewer at the beginning), at the same places."""
    values = np.array([y for _, y in points], dtype=np.float64)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    return [(x, float(y)) for (x, _), y in zip(points, means, strict=True)]


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many points: each the mean of neighbours, at the last one's place; as they are if they are few."""
    width = -(-len(points) // most)
    if width <= 1:
        return list(points)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(group[-1][0], float(np.mean([y for _, y in group]))) for group in groups]


def by_update(episodes: Sequence[EpisodeRecord]) -> Mapping[int, list[EpisodeRecord]]:
    """Episodes of each update, in its order."""
    groups: dict[int, list[EpisodeRecord]] = {}
    for episode in episodes:
        groups.setdefault(episode.update, []).append(episode)
    return {update: groups[update] for update in sorted(groups)}
