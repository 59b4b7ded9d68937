"""Rewards where they belong, then advantages and returns: what the PPO update regresses on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .advantages import (
    ActionLayout,
    Reduce,
    gae,
    masked_moments,
    mean_by_turn,
    per_turn,
    place_rewards,
    scaled_advantages,
    shaped_advantages,
    spread_over_tokens,
    sum_by_turn,
    whiten,
)
from .losses import KLEstimator, kl_estimate
from .types import StepCredit, Trajectory
from .update import Evaluation, UpdateTargets


@dataclass(frozen=True)
class TargetOptions:
    """How rewards become advantages (names as in [`MISEConfig`]).

    Args:
        gamma, lam (`float`): of GAE, per column (turn or token).
        turn_level (`bool`): one value and one advantage per turn.
        kl_coef (`float`): weight of the KL *in the reward*; 0 where the KL is a loss.
        kl_estimator (`"k1"` or `"k3"`): of the KL in the reward and of the logged KL.
        whiten_rewards (`bool`): scale the rewards to unit variance.
        hindsight_coef (`float`): alpha.
        gate (`float`): in [0, 1], how much of alpha is let through.
        hindsight_placement (`"advantage"` or `"return"`): where alpha n_t is added.
    """

    gamma: float
    lam: float
    turn_level: bool
    kl_coef: float
    kl_estimator: KLEstimator
    whiten_rewards: bool
    hindsight_coef: float
    hindsight_placement: Literal["advantage", "return"]
    gate: float = 1.0


@dataclass(frozen=True)
class TargetResult:
    """What became of the rewards.

    Args:
        update ([`UpdateTargets`]): what the update regresses on.
        agreement (`np.ndarray`): `(B,)` mean_t A_t^env n_t of each episode, for the gate; empty without hindsight, and
            where the return is all there is to compare with and all returns are equal.
        metrics (`dict[str, float]`): `objective/*`, and `hindsight/shaping_share`.
        credit ([`StepCredit`]): the same by steps, for people.
    """

    update: UpdateTargets
    agreement: np.ndarray
    metrics: dict[str, float]
    credit: StepCredit


def compute_targets(
    trajectories: Sequence[Trajectory],
    layout: ActionLayout,
    evaluation: Evaluation,
    step_scores: Sequence[np.ndarray] | None,
    options: TargetOptions,
    reduce: Reduce,
) -> TargetResult:
    """Places environment, KL and hindsight rewards and estimates advantages (equations: docs/method.md).

    Args:
        trajectories: B episodes.
        layout ([`ActionLayout`]): of the same episodes.
        evaluation ([`Evaluation`]): `(B, A)` log-probabilities and values.
        step_scores: normalised scores n_t, one array `(T,)` per episode; `None` without hindsight.
        options ([`TargetOptions`]).
        reduce: sums over processes, for the whitening.
    """
    turn_rewards = per_turn([[turn.reward for turn in t.turns] for t in trajectories], layout)  # (B, T)
    env_rewards, turn_scores = turn_rewards, torch.zeros_like(turn_rewards)
    if step_scores is not None:
        turn_scores = per_turn([scores.tolist() for scores in step_scores], layout)
    if options.hindsight_placement == "return":
        turn_rewards = turn_rewards + options.gate * options.hindsight_coef * turn_scores
    kl = kl_estimate(evaluation.log_probs, evaluation.ref_log_probs, options.kl_estimator) * layout.mask  # (B, A)
    rewards = place_rewards(turn_rewards, layout) - options.kl_coef * kl
    if options.whiten_rewards:
        rewards = whiten(rewards, layout.mask, reduce, shift_mean=False)
    advantages, returns = _estimate(trajectories, rewards, layout, evaluation, options)
    metrics = {
        "objective/kl": float(kl.sum()) / len(trajectories),
        "objective/entropy": float(-(evaluation.log_probs * layout.mask).sum()) / len(trajectories),
        "objective/scores": float(np.mean([t.episode_return for t in trajectories])),
    }
    agreement, ungated, praise = np.zeros(0), None, None
    if step_scores is not None:
        agreement = _agreement(advantages, env_rewards, turn_scores, layout, options, reduce)
        let_through, environment = options.gate * options.hindsight_coef, env_rewards
        if options.hindsight_placement == "advantage":
            scaled = scaled_advantages(advantages, layout, reduce)
            environment = mean_by_turn(scaled, layout)
            advantages = shaped_advantages(scaled, turn_scores, let_through, layout)
            # While all returns are equal, whitening blows up what little praise a nearly closed gate lets through;
            # so its scale is that of the advantages with the gate open.
            ungated = shaped_advantages(scaled, turn_scores, options.hindsight_coef, layout)
        praise = let_through * turn_scores  # (B, T)
        metrics["hindsight/shaping_share"] = _share(praise, environment)
    advantages = whiten(advantages, layout.mask, reduce, scale_of=ungated)
    targets = UpdateTargets(advantages=advantages, returns=returns, value_mask=_value_mask(layout, options.turn_level))
    credit = StepCredit(_by_steps(praise, layout), _by_steps(mean_by_turn(advantages, layout), layout))
    return TargetResult(targets, agreement, metrics, credit)


def _by_steps(turn_values: Tensor | None, layout: ActionLayout) -> tuple[np.ndarray, ...]:
    """`(B, T)` -> B arrays `(T_b,)`."""
    if turn_values is None:
        return (np.zeros(0),) * len(layout.turn_mask)
    values, lengths = turn_values.double().cpu().numpy(), layout.turn_mask.sum(dim=1).tolist()
    return tuple(row[:length] for row, length in zip(values, lengths, strict=True))


def _agreement(
    advantages: Tensor,
    env_rewards: Tensor,
    turn_scores: Tensor,
    layout: ActionLayout,
    options: TargetOptions,
    reduce: Reduce,
) -> np.ndarray:
    """`(B,)` mean_t A_t^env n_t; empty where all returns are equal, and advantages are only the critic's errors."""
    env_returns = env_rewards.sum(dim=1, keepdim=True)  # (B, 1)
    mean, variance = masked_moments(env_returns, torch.ones_like(env_returns, dtype=torch.bool), reduce)
    if float(variance) <= 1e-12 * float(mean) ** 2:  # equal, but for rounding
        return np.zeros(0)
    if options.hindsight_placement == "return":
        # The critic expects praise too; without one, what is left of A^env is the return beyond the mean.
        env_advantages = (env_returns - mean).expand_as(turn_scores)
    else:
        env_advantages = mean_by_turn(advantages, layout)
    products = env_advantages * turn_scores * layout.turn_mask  # (B, T)
    return (products.sum(dim=1) / layout.turn_mask.sum(dim=1).clamp(min=1)).double().cpu().numpy()


def _share(praise: Tensor, environment: Tensor) -> float:
    """How much of what the steps get is praise, `sum |praise| / (sum |praise| + sum |environment|)`; `(B, T)` both."""
    total = float(praise.abs().sum() + environment.abs().sum())
    return float(praise.abs().sum()) / total if total > 0 else 0.0


def _estimate(
    trajectories: Sequence[Trajectory],
    rewards: Tensor,
    layout: ActionLayout,
    evaluation: Evaluation,
    options: TargetOptions,
) -> tuple[Tensor, Tensor]:
    """GAE over turns (one value per turn, at its state) or over action tokens; both as `(B, A)`."""
    truncated = torch.tensor([t.stop_reason.truncated for t in trajectories], device=layout.mask.device)
    bootstrap = evaluation.final_values * truncated
    gamma, lam = options.gamma, options.lam
    if not options.turn_level:
        return gae(rewards, evaluation.values, layout.mask, bootstrap, gamma=gamma, lam=lam)
    turn_values = evaluation.values.gather(1, layout.turn_first) * layout.turn_mask
    advantages, returns = gae(
        sum_by_turn(rewards, layout), turn_values, layout.turn_mask, bootstrap, gamma=gamma, lam=lam
    )
    return spread_over_tokens(advantages, layout), spread_over_tokens(returns, layout)


def _value_mask(layout: ActionLayout, turn_level: bool) -> Tensor:
    """Values are trained at every action token, or only at the state where a turn begins; `(B, A)`."""
    if not turn_level:
        return layout.mask
    value_mask = torch.zeros_like(layout.mask)
    episode, turn = layout.turn_mask.nonzero(as_tuple=True)
    value_mask[episode, layout.turn_first[episode, turn]] = True
    return value_mask
