"""Health signals of a run: are the verdicts right, do they tell steps apart, how do episodes go? numpy only."""

from collections.abc import Sequence

import numpy as np

from .theory import entropy, kl, mutual_information_table, proxy_distribution
from .types import HindsightScores, StopReason, Trajectory


def auroc(scores: np.ndarray, outcomes: np.ndarray) -> float:
    """Probability that a won episode scores above a lost one, ties counting one half (Mann-Whitney).

    Args:
        scores (`np.ndarray`): `(N,)` finite scores.
        outcomes (`np.ndarray`): `(N,)` True = won.

    Returns:
        `float`: in [0, 1]; NaN where one of the two classes is missing.
    """
    scores, outcomes = _paired("auroc", scores, outcomes)
    won = outcomes > 0.5
    num_won, num_lost = int(won.sum()), int((~won).sum())
    if num_won == 0 or num_lost == 0:
        return float("nan")
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # tied scores share the mean of their ranks, counted from 1
    rank_sum = mean_rank[group][won].sum()
    return float((rank_sum - num_won * (num_won + 1) / 2) / (num_won * num_lost))


def brier(scores: np.ndarray, returns: np.ndarray) -> float:
    """Mean squared error `mean_n (score_n - R_n)^2`; NaN where there are no episodes.

    Args:
        scores (`np.ndarray`): `(N,)` scores in [0, 1].
        returns (`np.ndarray`): `(N,)` returns in [0, 1].
    """
    scores, returns = _paired("brier", scores, returns)
    return float(np.mean((scores - returns) ** 2)) if len(scores) else float("nan")


def ece(scores: np.ndarray, outcomes: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error `sum_b (n_b / N) |mean score in b - share of won episodes in b|`.

    Bins are of equal width, closed on the left, and the last one holds a score of 1 as well.

    Args:
        scores (`np.ndarray`): `(N,)` scores in [0, 1].
        outcomes (`np.ndarray`): `(N,)` True = won (or a return in [0, 1]).
        bins (`int`): number of bins.

    Returns:
        `float`: in [0, 1]; NaN where there are no episodes.
    """
    scores, outcomes = _paired("ece", scores, outcomes)
    if bins < 1:
        raise ValueError(f"ece: bins must be at least 1, got {bins}")
    if len(scores) == 0:
        return float("nan")
    if not _in_unit_interval(scores):
        raise ValueError(f"ece: scores must lie in [0, 1], got [{scores.min()}, {scores.max()}]; give probabilities")
    index = np.clip((scores * bins).astype(int), 0, bins - 1)  # a float32 score may exceed 1 by rounding
    gap_sums = np.bincount(index, weights=scores - outcomes, minlength=bins)  # n_b * (mean score - mean outcome)
    return float(np.abs(gap_sums).sum() / len(scores))


def within_episode_spread(episode_scores: Sequence[np.ndarray]) -> float:
    """Mean over episodes of the standard deviation of h_t within the episode: 0 = no credit is assigned to steps.

    Args:
        episode_scores (`Sequence[np.ndarray]`): N arrays `(T_n,)`; episodes without steps do not count.

    Returns:
        `float`: NaN where no episode has a step.
    """
    spreads = [float(np.std(scores)) for scores in episode_scores if len(scores)]
    return float(np.mean(spreads)) if spreads else float("nan")


def verdict_entropy(probs: np.ndarray) -> float:
    """Mean entropy of the verdict, `mean_t H(q_t)` in nats: near 0 = the judge is always sure.

    Args:
        probs (`np.ndarray`): `(S, K)` q(e | tau, t), a row per step, S >= 1.
    """
    return float(entropy(_verdict_rows(probs)).mean())


def mutual_information(probs: np.ndarray) -> float:
    """Batch estimate of `I(A;E)`, `mean_t KL(q_t || mean q)` in nats: 0 = the same is said of everything.

    Args:
        probs (`np.ndarray`): `(S, K)` q(e | tau, t), a row per step, S >= 1.
    """
    rows = _verdict_rows(probs)
    return mutual_information_table(np.full(len(rows), 1 / len(rows)), rows)


def kl_to_proxy(probs: np.ndarray, utilities: np.ndarray, beta: float) -> float:
    """`KL(mean q || p_R)` in nats, with `p_R(e) ∝ exp(u_e / beta)` the verdicts that the reward asks for.

    Args:
        probs (`np.ndarray`): `(S, K)` q(e | tau, t), a row per step, S >= 1.
        utilities (`np.ndarray`): `(K,)` u_e in [0, 1].
        beta (`float`): temperature, > 0.
    """
    rows = _verdict_rows(probs)
    if np.shape(utilities) != rows.shape[1:]:
        raise ValueError(
            f"kl_to_proxy: probs has {rows.shape[1]} verdicts but utilities has shape {np.shape(utilities)}; "
            f"give one utility per verdict"
        )
    return float(kl(rows.mean(axis=0), proxy_distribution(utilities, beta)))


def hindsight_metrics(
    scores: HindsightScores, trajectories: Sequence[Trajectory], utilities: np.ndarray, beta: float = 1.0
) -> dict[str, float]:
    """What is worth logging about a batch of verdicts. An episode's score is the mean of its steps' scores.

    Episodes that ended in an environment error, or before the first step, do not count. A key whose value is
    undefined is left out: AUROC and score gap while all episodes end alike, Brier where a return leaves [0, 1].

    Args:
        scores ([`HindsightScores`]): verdicts on N episodes.
        trajectories (`Sequence[Trajectory]`): the N episodes, in the same order.
        utilities (`np.ndarray`): `(K,)` u_e in [0, 1].
        beta (`float`): temperature of the proxy distribution in `mise/kl_to_proxy`.

    Returns:
        `dict[str, float]`: `hindsight/*` and `mise/*`, finite numbers only.
    """
    lengths = tuple(trajectory.num_steps for trajectory in trajectories)
    if lengths != scores.num_steps:
        raise ValueError(
            f"hindsight_metrics: the episodes have {lengths} steps but the scores are for {scores.num_steps}; "
            f"pass the trajectories that were scored, in the same order"
        )
    readable = scores.split(scores.readable)
    kept = [i for i, t in enumerate(trajectories) if readable[i].any() and t.stop_reason is not StopReason.ENV_ERROR]
    if not kept:
        return {}
    all_scores, all_probs = scores.split(), scores.split(scores.verdict_probs)
    by_step = score_by_step([all_scores[i] for i in kept])
    step_scores = [all_scores[i][readable[i]] for i in kept]
    probs = np.concatenate([all_probs[i][readable[i]] for i in kept])
    episode_scores = scores.episode_scores[kept]
    won = np.array([trajectories[i].success for i in kept])
    returns = np.array([trajectories[i].episode_return for i in kept])
    metrics = {
        "hindsight/score_mean": float(episode_scores.mean()),
        "hindsight/score_gap": _gap(episode_scores, won),
        "hindsight/auroc": auroc(episode_scores, won),
        "hindsight/brier": brier(episode_scores, returns) if _in_unit_interval(returns) else float("nan"),
        "hindsight/ece": ece(episode_scores, won),
        "hindsight/within_episode_spread": within_episode_spread(step_scores),
        "hindsight/verdict_entropy": verdict_entropy(probs),
        "mise/mutual_information": mutual_information(probs),
        "mise/kl_to_proxy": kl_to_proxy(probs, utilities, beta),
    }
    metrics.update({f"hindsight/by_step/{step}": mean for step, mean in by_step.items()})
    if scores.written:
        metrics["hindsight/unreadable_rate"] = float(1 - scores.readable.mean())
    return {name: value for name, value in metrics.items() if np.isfinite(value)}


def score_by_step(episode_scores: Sequence[np.ndarray], most: int = 16) -> dict[int, float]:
    """Mean score of the steps at each place in the episode: a judge should not praise a place.

    Args:
        episode_scores (`Sequence[np.ndarray]`): N arrays `(T_n,)`; NaN = not readable, left out.
        most (`int`): most numbers; of longer episodes neighbouring steps are taken together.

    Returns:
        `dict[int, float]`: by the first step, from 0, of each group.
    """
    longest = max((len(scores) for scores in episode_scores), default=0)
    width = max(1, -(-longest // most))
    groups: dict[int, list[float]] = {}
    for scores in episode_scores:
        for step, score in enumerate(scores):
            if np.isfinite(score):
                groups.setdefault(step // width * width, []).append(float(score))
    return {first: _mean(groups[first]) for first in sorted(groups)}


def episode_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """How the episodes went. Episodes that ended in an environment error are counted in `env/error_rate` only.

    Args:
        trajectories (`Sequence[Trajectory]`): N episodes.

    Returns:
        `dict[str, float]`: `env/success`, `env/return`, `env/episode_length` (turns), `env/invalid_action_rate` (share
        of the turns), `env/truncated_rate`, `env/error_rate`, `env/action_tokens` (sampled tokens per episode). Keys
        without a single episode (or turn) to average over are left out.
    """
    if not trajectories:
        return {}
    ended = [t for t in trajectories if t.stop_reason is not StopReason.ENV_ERROR]
    metrics = {"env/error_rate": 1 - len(ended) / len(trajectories)}
    if ended:
        metrics["env/success"] = _mean([t.success for t in ended])
        metrics["env/return"] = _mean([t.episode_return for t in ended])
        metrics["env/episode_length"] = _mean([t.num_steps for t in ended])
        metrics["env/truncated_rate"] = _mean([t.stop_reason.truncated for t in ended])
        metrics["env/action_tokens"] = _mean([sum(t.action_mask) for t in ended])
    turns = [turn for t in ended for turn in t.turns]
    if turns:
        metrics["env/invalid_action_rate"] = _mean([not turn.action_valid for turn in turns])
    return metrics


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _gap(scores: np.ndarray, won: np.ndarray) -> float:
    """Mean score of won episodes minus that of lost ones; large from the start = the outcome leaks into verdicts."""
    return float(scores[won].mean() - scores[~won].mean()) if won.any() and not won.all() else float("nan")


def _in_unit_interval(values: np.ndarray, tolerance: float = 1e-6) -> bool:
    return bool(values.min() >= -tolerance and values.max() <= 1 + tolerance)


def _paired(name: str, scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != targets.shape:
        raise ValueError(
            f"{name}: scores has shape {scores.shape} and its targets {targets.shape}; give two (N,) arrays"
        )
    if not (np.isfinite(scores).all() and np.isfinite(targets).all()):
        raise ValueError(f"{name}: scores and targets must be finite; leave out what could not be judged")
    return scores, targets


def _verdict_rows(probs: np.ndarray) -> np.ndarray:
    """`(S, K)` in float64 with rows that sum to 1 exactly enough (float32 rows are off by 1e-7)."""
    rows = np.asarray(probs, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"verdict probabilities have shape {rows.shape}; give (S, K), one row per step, S >= 1")
    totals = rows.sum(axis=1, keepdims=True)
    if not ((rows >= 0).all() and (np.abs(totals - 1) < 1e-2).all()):  # bf16 rows are off by 4e-3; also False for NaN
        raise ValueError(
            f"verdict probabilities must be >= 0 with rows that sum to 1; the smallest is {rows.min()}, "
            f"row sums lie in [{totals.min()}, {totals.max()}]; normalise over the K verdicts"
        )
    return rows / totals
