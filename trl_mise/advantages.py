"""Reward placement and advantages over action tokens. Pure functions on named tensors.

Layout: B episodes, A = most action tokens of an episode, T = most turns of an episode. Action tokens are stored
compactly (`(B, A)`, in order, padded on the right), so that "the next action token" is simply the next column.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .types import Trajectory

STD_FLOOR = 0.05

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


def _identity(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class ActionLayout:
    """Where the sampled tokens of a batch of episodes are.

    Args:
        token_ids (`Tensor`): `(B, A)` sampled ids.
        position (`Tensor`): `(B, A)` index of each sampled token in its episode's `token_ids`.
        turn (`Tensor`): `(B, A)` turn that the token belongs to.
        mask (`Tensor`): `(B, A)` True = a sampled, trainable token (False = padding of this layout).
        turn_mask (`Tensor`): `(B, T)` True = the episode has this turn.
        turn_first (`Tensor`): `(B, T)` column (in A) of the turn's first sampled token.
        turn_last (`Tensor`): `(B, T)` column (in A) of the turn's last sampled token.
    """

    token_ids: Tensor
    position: Tensor
    turn: Tensor
    mask: Tensor
    turn_mask: Tensor
    turn_first: Tensor
    turn_last: Tensor

    @property
    def num_tokens(self) -> int:
        return int(self.mask.sum())


def action_layout(trajectories: Sequence[Trajectory], device: torch.device | str = "cpu") -> ActionLayout:
    """Builds the [`ActionLayout`] of a batch from the spans that the rollout recorded.

    Raises:
        ValueError: no episode has an action token.
    """
    size_b = len(trajectories)
    lengths = [[end - start for start, end in (turn.action_span for turn in t.turns)] for t in trajectories]
    size_a = max((sum(ls) for ls in lengths), default=0)
    size_t = max((len(ls) for ls in lengths), default=0)
    if size_a == 0:
        raise ValueError("no episode of this batch has a sampled token: there is nothing to train on")
    token_ids, position, turn = (torch.zeros(size_b, size_a, dtype=torch.long) for _ in range(3))
    mask = torch.zeros(size_b, size_a, dtype=torch.bool)
    turn_mask = torch.zeros(size_b, size_t, dtype=torch.bool)
    turn_first, turn_last = (torch.zeros(size_b, size_t, dtype=torch.long) for _ in range(2))
    for b, trajectory in enumerate(trajectories):
        column = 0
        for t, record in enumerate(trajectory.turns):
            start, end = record.action_span
            if end <= start:
                raise ValueError(f"turn {t + 1} of episode {b} has the empty action span {record.action_span}")
            stop = column + end - start
            token_ids[b, column:stop] = torch.tensor(trajectory.token_ids[start:end])
            position[b, column:stop] = torch.arange(start, end)
            turn[b, column:stop] = t
            mask[b, column:stop] = True
            turn_mask[b, t], turn_first[b, t], turn_last[b, t] = True, column, stop - 1
            column = stop
    tensors = (token_ids, position, turn, mask, turn_mask, turn_first, turn_last)
    return ActionLayout(*(tensor.to(device) for tensor in tensors))


def per_turn(values: Sequence[Sequence[float]], layout: ActionLayout) -> Tensor:
    """Pads one list of per-turn numbers per episode into a `(B, T)` tensor (0 where there is no turn)."""
    out = torch.zeros(layout.turn_mask.shape, dtype=torch.float32)
    for row, numbers in zip(out, values, strict=True):
        row[: len(numbers)] = torch.as_tensor(list(numbers), dtype=torch.float32)
    return out.to(layout.mask.device)


def place_rewards(turn_rewards: Tensor, layout: ActionLayout) -> Tensor:
    """Puts the reward of every turn on the turn's *last sampled token*.

    Args:
        turn_rewards (`Tensor`): `(B, T)`.

    Returns:
        `Tensor`: `(B, A)` rewards, 0 elsewhere.
    """
    rewards = torch.zeros(layout.mask.shape, dtype=turn_rewards.dtype, device=turn_rewards.device)
    episode, turn = layout.turn_mask.nonzero(as_tuple=True)
    rewards[episode, layout.turn_last[episode, turn]] = turn_rewards[episode, turn]
    return rewards


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, bootstrap: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, eq. 16) over compact columns.

        delta_j = r_j + gamma V_{j+1} - V_j,   A_j = delta_j + gamma lam A_{j+1},   V_{end} = bootstrap

    Args:
        rewards, values (`Tensor`): `(B, N)`; a column is an action token or a turn.
        mask (`Tensor`): `(B, N)` bool, True on a prefix of every row.
        bootstrap (`Tensor`): `(B,)` value of the state after the last column: 0 if terminated, V(s_T) if truncated.

    Returns:
        `tuple[Tensor, Tensor]`: advantages and returns (advantages + values), `(B, N)`, 0 where masked out.
    """
    if rewards.ndim != 2 or rewards.shape != values.shape or rewards.shape != mask.shape:
        raise ValueError(
            f"gae: rewards {rewards.shape}, values {values.shape}, mask {mask.shape} must be equal, (B, N)"
        )
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(bootstrap)
    next_value = bootstrap
    for j in reversed(range(values.shape[1])):
        here = mask[:, j]
        delta = rewards[:, j] + gamma * next_value - values[:, j]
        running = torch.where(here, delta + gamma * lam * running, running)
        next_value = torch.where(here, values[:, j], next_value)
        advantages[:, j] = torch.where(here, running, torch.zeros_like(running))
    return advantages, (advantages + values) * mask


def sum_by_turn(token_values: Tensor, layout: ActionLayout) -> Tensor:
    """`(B, A)` -> `(B, T)`: the sum over each turn's tokens."""
    out = torch.zeros(layout.turn_mask.shape, dtype=token_values.dtype, device=token_values.device)
    return out.scatter_add(1, layout.turn, token_values * layout.mask)


def mean_by_turn(token_values: Tensor, layout: ActionLayout) -> Tensor:
    """`(B, A)` -> `(B, T)`: the mean over each turn's tokens, 0 where there is no turn."""
    counts = sum_by_turn(torch.ones_like(token_values), layout)
    return sum_by_turn(token_values, layout) / counts.clamp(min=1)


def spread_over_tokens(turn_values: Tensor, layout: ActionLayout) -> Tensor:
    """`(B, T)` -> `(B, A)`: every sampled token of a turn gets the turn's value."""
    return turn_values.gather(1, layout.turn) * layout.mask


def masked_moments(values: Tensor, mask: Tensor, reduce: Reduce = _identity) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of the unmasked values over all processes (variance 0 for a single value)."""
    weight = mask.to(values.dtype)
    total = reduce(torch.stack([weight.sum(), (values * weight).sum()]))
    count = total[0].clamp(min=1)
    mean = total[1] / count
    squares = reduce((((values - mean) ** 2) * weight).sum())
    return mean, squares / (count - 1).clamp(min=1)


def whiten(
    values: Tensor,
    mask: Tensor,
    reduce: Reduce = _identity,
    *,
    shift_mean: bool = True,
    scale_of: Tensor | None = None,
) -> Tensor:
    """Zero mean (unless `shift_mean=False`), unit variance over the unmasked values of all processes.

    Args:
        values, mask (`Tensor`): of the same shape.
        reduce: sums over processes.
        shift_mean (`bool`): take the mean away.
        scale_of (`Tensor`, *optional*): divide by the standard deviation of these instead of that of `values`.
    """
    mean, variance = masked_moments(values, mask, reduce)
    if scale_of is not None:
        _, variance = masked_moments(scale_of, mask, reduce)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean) * mask


def scaled_advantages(env_advantages: Tensor, layout: ActionLayout, reduce: Reduce = _identity) -> Tensor:
    """The environment's advantages in units of their own spread, `A_j^env / max(std(A^env), 0.05)`; `(B, A)`."""
    _, variance = masked_moments(env_advantages, layout.mask, reduce)
    return env_advantages / variance.sqrt().clamp(min=STD_FLOOR)


def shaped_advantages(scaled: Tensor, turn_scores: Tensor, coef: float, layout: ActionLayout) -> Tensor:
    """Hindsight scores beside the environment's advantages (placement `"advantage"`, docs/method.md):

        A_j = A_j^env / max(std(A^env), 0.05) + coef * n_{turn(j)}

    The verdict shapes the choice at this state only; it is never summed over the future.

    Args:
        scaled (`Tensor`): `(B, A)` the first term, see [`scaled_advantages`].
        turn_scores (`Tensor`): `(B, T)` normalised scores n_t.
        coef (`float`): alpha.

    Returns:
        `Tensor`: `(B, A)`, not yet whitened.
    """
    return (scaled + coef * spread_over_tokens(turn_scores, layout)) * layout.mask
