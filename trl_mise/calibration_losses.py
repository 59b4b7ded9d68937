"""Losses that calibrate the judge through its own weights: verdict log-odds regressed toward the sparse return.

The calibration reward of arXiv 2604.11611 rewards verdicts that agree with the environment; its formulas are not
public. Those here ("Calibration" in the docs) are this project's own derivation. With `z_t` the log-odds of the
expected verdict `h_t`, so that `h_t = sigmoid(z_t)`, and R the return of the step's episode,

    target "sum":    mean_n BCE( sigmoid(c + sum_{t in n} z_t), R_n )        credit within the episode stays free
    target "step":   mean_n mean_{t in n} BCE( h_t, R_n )                    every step toward R
    anchor:          mean_t BCE( h_t, h_t^ref )

`BCE(p, y) = -y log p - (1 - y) log(1 - p)` is always computed from z, never from a rounded probability.
"""

import torch
import torch.nn.functional as F

_TOLERANCE = 1e-6  # a sum of rewards may miss 1 by rounding


def verdict_log_odds(logits: torch.Tensor, utilities: torch.Tensor) -> torch.Tensor:
    """Log-odds of the expected verdict, `z = logit(h)` with `h = sum_k u_k q_k` and `q = softmax(logits)`.

    As `h` and `1 - h` share their normaliser, `z = logsumexp_k(l_k + log u_k) - logsumexp_k(l_k + log(1 - u_k))`:
    for `u = (1, 0)` that is `l_good - l_bad` exactly, and nothing saturates.

    Args:
        logits (`torch.Tensor`): `(S, K)` verdict logits, finite (any constant per row drops out).
        utilities (`torch.Tensor`): `(K,)` u_k in [0, 1], not all 0 and not all 1.

    Returns:
        `torch.Tensor`: `(S,)` in float32, or float64 if the logits are.
    """
    if logits.ndim != 2 or utilities.shape != logits.shape[1:]:
        raise ValueError(
            f"verdict_log_odds: logits has shape {tuple(logits.shape)} and utilities {tuple(utilities.shape)}; "
            f"give logits as (S, K) and utilities as (K,)"
        )
    logits = logits if logits.dtype == torch.float64 else logits.float()
    utilities = utilities.to(logits)
    if not bool(((utilities >= 0) & (utilities <= 1)).all()) or utilities.max() == 0 or utilities.min() == 1:
        raise ValueError(
            f"utilities must lie in [0, 1], with one above 0 and one below 1, got {utilities.tolist()}; "
            f"otherwise every score is the same"
        )
    praise = torch.logsumexp(logits + utilities.log(), dim=-1)
    blame = torch.logsumexp(logits + torch.log1p(-utilities), dim=-1)
    return praise - blame


def sum_target_loss(
    z: torch.Tensor, episode_index: torch.Tensor, returns: torch.Tensor, bias: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Return decomposition, `mean_n BCE( sigmoid(c + sum_{t in n} z_t), R_n )`.

    Only an episode's total is tied to its return: all its steps get the same gradient, `(p_n - R_n) / N`, and what
    distinguishes them is left to the model. Own derivation, see the module's docstring.

    Args:
        z (`torch.Tensor`): `(S,)` verdict log-odds.
        episode_index (`torch.Tensor`): `(S,)` the episode of each step, in [0, N).
        returns (`torch.Tensor`): `(N,)` R_n in [0, 1].
        bias (`torch.Tensor` or `float`): c, a learned scalar.

    Returns:
        `torch.Tensor`: scalar.
    """
    episode_index, returns = _checked_steps("sum_target_loss", z, episode_index, returns)
    bias = torch.as_tensor(bias, dtype=z.dtype, device=z.device)
    if bias.numel() != 1:
        raise ValueError(f"sum_target_loss: bias must be one number, got shape {tuple(bias.shape)}")
    totals = z.new_zeros(len(returns)).index_add(0, episode_index, z) + bias.reshape(())
    return F.binary_cross_entropy_with_logits(totals, returns)


def step_target_loss(z: torch.Tensor, episode_index: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """Every step toward the return, `mean_n mean_{t in n} BCE( h_t, R_n )`.

    The mean is taken over the steps of an episode first and then over episodes, so that long episodes (often the
    failures) do not undo the balance of the batch. Own derivation, see the module's docstring.

    Args:
        z (`torch.Tensor`): `(S,)` verdict log-odds.
        episode_index (`torch.Tensor`): `(S,)` the episode of each step, in [0, N).
        returns (`torch.Tensor`): `(N,)` R_n in [0, 1].

    Returns:
        `torch.Tensor`: scalar.
    """
    episode_index, returns = _checked_steps("step_target_loss", z, episode_index, returns)
    lengths = torch.bincount(episode_index, minlength=len(returns)).to(z.dtype)
    losses = F.binary_cross_entropy_with_logits(z, returns[episode_index], reduction="none")
    return (losses / lengths[episode_index]).sum() / len(returns)


def anchor_loss(z: torch.Tensor, reference_scores: torch.Tensor) -> torch.Tensor:
    """Keeps the judge near the reference model's verdicts, `mean_t BCE( h_t, h_t^ref )` over all S steps.

    Its gradient, `(h_t - h_t^ref) / S`, vanishes at `h = h^ref`. Own derivation, see the module's docstring.

    Args:
        z (`torch.Tensor`): `(S,)` verdict log-odds.
        reference_scores (`torch.Tensor`): `(S,)` h_t^ref in [0, 1].

    Returns:
        `torch.Tensor`: scalar.
    """
    if z.ndim != 1 or z.shape != reference_scores.shape or len(z) == 0:
        raise ValueError(
            f"anchor_loss: z has shape {tuple(z.shape)} and reference_scores {tuple(reference_scores.shape)}; "
            f"give two (S,) tensors, S >= 1"
        )
    return F.binary_cross_entropy_with_logits(
        z, _checked_unit("anchor_loss: reference_scores", reference_scores.to(z))
    )


def _checked_steps(
    name: str, z: torch.Tensor, episode_index: torch.Tensor, returns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if z.ndim != 1 or episode_index.shape != z.shape or returns.ndim != 1:
        raise ValueError(
            f"{name}: z has shape {tuple(z.shape)}, episode_index {tuple(episode_index.shape)} and returns "
            f"{tuple(returns.shape)}; give (S,), (S,) and (N,)"
        )
    if episode_index.is_floating_point() or episode_index.dtype == torch.bool:
        raise ValueError(f"{name}: episode_index must hold integers, got {episode_index.dtype}")
    episode_index = episode_index.to(device=z.device, dtype=torch.long)
    present = sorted(set(episode_index.tolist()))
    if present != list(range(len(returns))) or not present:
        raise ValueError(
            f"{name}: episode_index names the episodes {present[:8]} but there are {len(returns)} returns; every "
            f"episode from 0 to {len(returns) - 1} needs at least one step"
        )
    return episode_index, _checked_unit(f"{name}: returns", returns.to(z))


def _checked_unit(name: str, values: torch.Tensor) -> torch.Tensor:
    if not bool(((values >= -_TOLERANCE) & (values <= 1 + _TOLERANCE)).all()):  # also False for NaN
        raise ValueError(
            f"{name} must lie in [0, 1], got {values.min().item()} to {values.max().item()}; scores are expected "
            f"utilities in [0, 1], and rewards must be scaled so that an episode's return is in [0, 1] too"
        )
    return values.detach().clamp(0.0, 1.0)
