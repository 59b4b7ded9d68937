"""How well an agent does on an environment, and how sure of it one can be. No torch."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist, mean
from typing import Any, NamedTuple, Protocol

import numpy as np

from .envs.base import EnvironmentFactory
from .types import StopReason, Trajectory

Progress = Callable[[int, int], None]
"""Called with (finished episodes, all episodes)."""


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """What came of one episode.

    Args:
        task (`Mapping`): its dataset row.
        episode_return (`float`): undiscounted sum of the sparse rewards.
        success (`bool`): the environment's own `won` where it gives one, otherwise a return of (at least) 1.
        steps (`int`): actions.
        invalid_actions (`int`): those that the environment did not understand.
        stop_reason ([`StopReason`]): why it ended.
        error (`str`, *optional*): what went wrong; the other numbers then mean nothing.
    """

    task: Mapping[str, Any]
    episode_return: float = 0.0
    success: bool = False
    steps: int = 0
    invalid_actions: int = 0
    stop_reason: StopReason = StopReason.TERMINATED
    error: str | None = None

    @classmethod
    def of(cls, trajectory: Trajectory) -> "EpisodeResult":
        """From an episode that a model played."""
        return cls(
            task=trajectory.task,
            episode_return=trajectory.episode_return,
            success=trajectory.success and not trajectory.failed,
            steps=trajectory.num_steps,
            invalid_actions=sum(not turn.action_valid for turn in trajectory.turns),
            stop_reason=trajectory.stop_reason,
            error=trajectory.error,
        )


class Agent(Protocol):
    """What plays episodes."""

    def play(
        self,
        factory: EnvironmentFactory,
        tasks: Sequence[Mapping[str, Any]],
        max_steps: int,
        on_progress: Progress | None = None,
    ) -> list[EpisodeResult]:
        """One episode per task, of at most `max_steps` actions; the results are in the order of the tasks.

        An environment that fails costs its episode, not the others.
        """
        ...


class Estimate(NamedTuple):
    """A mean and its 95% confidence interval."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Wilson's score interval of a proportion p = k / n.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    It keeps its level for few trials and near 0 and 1, where the textbook's normal interval has no width.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927), 209-212.

    Args:
        successes (`int`), trials (`int`): k and n.
        confidence (`float`): level of the interval.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes must be between 0 and trials >= 1, got {successes} of {trials}")
    p, z = successes / trials, _normal_quantile(confidence)
    centre = p + z**2 / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    # At the ends the two terms are equal, but for rounding.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == trials else (centre + half) / scale
    return low, high


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over resamples of the values, drawn with replacement.

    Where all values are equal it has no width, whatever their number; look at the success rate's interval then.

    Source: B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
    """
    if len(values) == 0:
        raise ValueError("values is empty; there is no mean of nothing")
    numbers, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    means = [numbers[rng.integers(len(numbers), size=len(numbers))].mean() for _ in range(resamples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


@dataclass(frozen=True)
class EvaluationResult:
    """An agent's episodes in numbers. Those that an error ended are counted, and left out of rates and means.

    Args:
        episodes (`tuple[EpisodeResult, ...]`): in the order of the tasks.
        seconds (`float`): that all of it took.
        success ([`Estimate`], *optional*): success rate with Wilson's interval; None where every episode failed.
        mean_return ([`Estimate`], *optional*): with a bootstrap interval.
        mean_steps (`float`, *optional*): actions of an episode.
        invalid_action_rate (`float`, *optional*): share of actions that the environment did not understand.
        stop_reasons (`Mapping[str, int]`): how many episodes ended why, errors included. Many `token_budget` say that
            `max_episode_tokens` (less what `max_new_tokens` keeps free) is too small for these episodes.
        num_errors (`int`): episodes in which the environment, or the agent's plan, failed.
        steps_per_second (`float`): over `seconds`, what the agent, resets and the environment's start took included.
    """

    episodes: tuple[EpisodeResult, ...] = field(repr=False)
    seconds: float
    success: Estimate | None
    mean_return: Estimate | None
    mean_steps: float | None
    invalid_action_rate: float | None
    stop_reasons: Mapping[str, int]
    num_errors: int
    steps_per_second: float

    @classmethod
    def of(cls, episodes: Sequence[EpisodeResult], seconds: float) -> "EvaluationResult":
        """Sums up."""
        played = [episode for episode in episodes if episode.error is None]
        steps = sum(episode.steps for episode in played)
        returns = [episode.episode_return for episode in played]
        won = sum(episode.success for episode in played)
        return cls(
            episodes=tuple(episodes),
            seconds=seconds,
            success=Estimate(won / len(played), *wilson_interval(won, len(played))) if played else None,
            mean_return=Estimate(mean(returns), *bootstrap_interval(returns)) if played else None,
            mean_steps=steps / len(played) if played else None,
            invalid_action_rate=sum(episode.invalid_actions for episode in played) / steps if steps else None,
            stop_reasons=dict(Counter(episode.stop_reason.value for episode in episodes).most_common()),
            num_errors=len(episodes) - len(played),
            steps_per_second=sum(episode.steps for episode in episodes) / seconds if seconds > 0 else 0.0,
        )

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file; the rows of the tasks are as they are."""
        estimates = {
            name: estimate._asdict() if estimate is not None else None
            for name, estimate in (("success", self.success), ("mean_return", self.mean_return))
        }
        numbers = ("mean_steps", "invalid_action_rate", "stop_reasons", "num_errors", "steps_per_second", "seconds")
        return {
            "num_episodes": len(self.episodes),
            **estimates,
            **{name: getattr(self, name) for name in numbers},
            "episodes": [asdict(episode) for episode in self.episodes],
        }

    def table(self) -> str:
        """The numbers, to be read."""
        played = len(self.episodes) - self.num_errors
        rows = [
            ("episodes", f"{played}", ""),
            ("success", *_shown(self.success)),
            ("return", *_shown(self.mean_return)),
            ("steps an episode", _number(self.mean_steps, ".1f"), ""),
            ("invalid actions", _number(self.invalid_action_rate, ".1%"), ""),
            ("errors", f"{self.num_errors}", ""),
            ("steps/s, all included", f"{self.steps_per_second:.3g}", ""),
            *((f"ended by {reason}", f"{count}", "") for reason, count in self.stop_reasons.items()),
        ]
        lines = [("", "mean", "95% interval"), *rows]
        return aligned(lines)

    @property
    def errors(self) -> list[str]:
        """What went wrong, one line an episode."""
        return [episode.error for episode in self.episodes if episode.error is not None]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _shown(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return "-", ""
    # An interval without width comes from values without spread; it would claim a certainty that is not there.
    interval = "" if estimate.low == estimate.high else f"{estimate.low:.3f} to {estimate.high:.3f}"
    return f"{estimate.value:.3f}", interval


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def evaluate(
    agent: Agent,
    factory: EnvironmentFactory,
    tasks: Sequence[Mapping[str, Any]],
    *,
    max_steps: int = 100,
    on_progress: Progress | None = None,
) -> EvaluationResult:
    """Plays one episode per task and sums up.

    Args:
        agent ([`Agent`]): a [`RandomAgent`], an [`ExpertAgent`], a [`ModelAgent`] or one of your own.
        factory (`EnvironmentFactory`): makes an environment.
        tasks (`Sequence[Mapping]`): dataset rows; each is passed as `reset(seed=row.get("seed"), options=row)`.
        max_steps (`int`): most actions of an episode; without an own limit an environment may go on for ever.
        on_progress ([`Progress`], *optional*): is told after every episode.
    """
    if not tasks:
        raise ValueError("tasks is empty; give at least one row, e.g. of the environment's make_tasks(split, n)")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    start = time.perf_counter()
    episodes = agent.play(factory, tasks, max_steps, on_progress)
    return EvaluationResult.of(episodes, time.perf_counter() - start)
