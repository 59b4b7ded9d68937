"""How far an engine's sampling is from what the trainer believes of it, and the correction. Pure tensor functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .advantages import ActionLayout
from .types import Trajectory


@dataclass(frozen=True)
class SamplingDrift:
    """What another engine's arithmetic does to a rollout.

    Args:
        weights (`Tensor`): `(B, A)` truncated importance weights; 1 where nothing is known.
        metrics (`dict[str, float]`): `sampling/*`; empty where no engine said what it sampled with.
    """

    weights: Tensor
    metrics: dict[str, float]


def sampling_drift(
    trajectories: Sequence[Trajectory], layout: ActionLayout, log_probs: Tensor, cap: float
) -> SamplingDrift:
    """Truncated importance weights (Ionides, 2008) of the trainer's policy over the engine's, token by token:

        w_j = min(pi_old(a_j | s_j) / mu(a_j | s_j), cap)

    mu is what the engine sampled from, pi_old the same policy in the trainer's arithmetic. The PPO loss of a token
    times w_j is an estimate under pi_old from samples of mu; the truncation bounds its variance and costs a bias.

    Args:
        trajectories: B episodes.
        layout ([`ActionLayout`]): of the same episodes.
        log_probs (`Tensor`): `(B, A)` log pi_old, recomputed by the trainer.
        cap (`float`): largest weight, at least 1.
    """
    if not any(turn.sampling_log_probs for trajectory in trajectories for turn in trajectory.turns):
        return SamplingDrift(torch.ones_like(log_probs), {})
    sampled = torch.full(layout.mask.shape, float("nan"))
    for row, trajectory in zip(sampled, trajectories, strict=True):
        values = [
            value
            for turn in trajectory.turns
            for value in turn.sampling_log_probs or [float("nan")] * (turn.action_span[1] - turn.action_span[0])
        ]
        row[: len(values)] = torch.tensor(values)
    difference = log_probs.float() - sampled.to(log_probs.device)  # (B, A)
    is_known = layout.mask & difference.isfinite()
    weights = torch.where(is_known, difference.clamp(max=20.0).exp().clamp(max=cap), 1.0)
    if not is_known.any():
        return SamplingDrift(weights, {})
    known, of_known = difference[is_known].abs(), weights[is_known]
    metrics = {
        "sampling/sampling_logp_difference/mean": float(known.mean()),
        "sampling/sampling_logp_difference/max": float(known.max()),
        "sampling/importance_sampling_ratio/min": float(of_known.min()),
        "sampling/importance_sampling_ratio/mean": float(of_known.mean()),
        "sampling/importance_sampling_ratio/max": float(of_known.max()),
    }
    return SamplingDrift(weights, metrics)
