"""PPO losses over flat action tokens. Pure functions; sums are divided by counts that the caller states."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k3"]


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) from samples of pi: k1 = -log r, k3 = r - 1 - log r, r = pi_ref / pi.

    Source: J. Schulman, "Approximating KL Divergence" (2020). Shapes: all equal.
    """
    log_ratio = ref_log_probs - log_probs
    # Near the reference, exp(x) - 1 would be all rounding in float32.
    return -log_ratio if estimator == "k1" else log_ratio.expm1() - log_ratio


@dataclass(frozen=True)
class TokenTargets:
    """What the update needs to know of N action tokens, and of the M <= N tokens where a value is trained.

    Args:
        old_log_probs (`Tensor`): `(N,)` under the policy that sampled.
        ref_log_probs (`Tensor`): `(N,)` under the reference policy.
        advantages (`Tensor`): `(N,)`.
        old_values (`Tensor`): `(N,)`.
        returns (`Tensor`): `(N,)` regression targets of the value.
        value_mask (`Tensor`): `(N,)` bool, True where the value is trained.
    """

    old_log_probs: Tensor
    ref_log_probs: Tensor
    advantages: Tensor
    old_values: Tensor
    returns: Tensor
    value_mask: Tensor


@dataclass(frozen=True)
class PPOCoefficients:
    """Coefficients of the PPO objective (names as in TRL's `PPOConfig`); `kl_coef` is 0 unless the KL is a loss."""

    cliprange: float
    cliprange_value: float
    vf_coef: float
    kl_coef: float


@dataclass(frozen=True)
class PPOLoss:
    """Scalars: `total` carries the gradient, the rest is detached; each is a sum over tokens / the stated count."""

    total: Tensor
    policy: Tensor
    value: Tensor
    kl: Tensor
    entropy: Tensor
    ratio: Tensor
    ratio_max_deviation: Tensor
    approx_kl: Tensor
    policy_clip_fraction: Tensor
    value_clip_fraction: Tensor


def ppo_loss(
    log_probs: Tensor,
    values: Tensor,
    entropy: Tensor,
    targets: TokenTargets,
    coefficients: PPOCoefficients,
    *,
    num_tokens: float,
    num_values: float,
) -> PPOLoss:
    """Clipped surrogate, clipped value loss (Schulman et al., arXiv 1707.06347, eq. 7 and 9) and the k3 KL as a loss.

    Args:
        log_probs, values, entropy (`Tensor`): `(N,)` under the present weights.
        targets ([`TokenTargets`]): `(N,)` each.
        num_tokens, num_values (`float`): divisors of the sums: the tokens (values) of the whole mini-batch, so that
            micro-batches of unequal length add up to the mini-batch's mean.
    """
    log_ratio = log_probs - targets.old_log_probs
    ratio = log_ratio.exp()
    surrogate = -targets.advantages * ratio
    clipped = -targets.advantages * ratio.clamp(1 - coefficients.cliprange, 1 + coefficients.cliprange)
    policy = torch.maximum(surrogate, clipped).sum() / num_tokens

    value_weight = targets.value_mask.to(values.dtype)
    near_old = values.clamp(
        targets.old_values - coefficients.cliprange_value, targets.old_values + coefficients.cliprange_value
    )
    error, clipped_error = (values - targets.returns) ** 2, (near_old - targets.returns) ** 2
    value = 0.5 * (torch.maximum(error, clipped_error) * value_weight).sum() / num_values

    kl = kl_estimate(log_probs, targets.ref_log_probs, "k3").sum() / num_tokens
    total = policy + coefficients.vf_coef * value
    if coefficients.kl_coef:
        total = total + coefficients.kl_coef * kl
    return PPOLoss(
        total=total,
        policy=policy.detach(),
        value=value.detach(),
        kl=kl.detach(),
        entropy=entropy.detach().sum() / num_tokens,
        ratio=ratio.detach().sum() / num_tokens,
        ratio_max_deviation=(ratio.detach() - 1).abs().max() if ratio.numel() else ratio.new_zeros(()),
        approx_kl=0.5 * (log_ratio.detach() ** 2).sum() / num_tokens,
        policy_clip_fraction=(clipped > surrogate).float().sum() / num_tokens,
        value_clip_fraction=((clipped_error > error).float() * value_weight).sum() / num_values,
    )
