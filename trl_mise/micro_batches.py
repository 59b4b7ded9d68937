"""Token rows that go through the model together: whole episodes, or single turns where the policy sees a window."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .advantages import ActionLayout
from .token_batch import TokenBatch, pad_rows
from .types import Trajectory


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together, in every epoch: at lr = 0 all ratios are then exactly 1.

    Args:
        episodes (`Tensor`): `(b,)` the episode of each row, an index into the rollout.
        tokens ([`TokenBatch`]): `(b, L)`.
        mask (`Tensor`): `(b, A)` the part of the episode's action mask that is in this row.
        states (`tuple[Tensor, Tensor]`): rows and columns `(N,)` of the state before each action token.
        last (`tuple[Tensor, Tensor]`): rows and columns `(E,)` of the last state of the episodes that end here.
    """

    episodes: Tensor
    tokens: TokenBatch
    mask: Tensor
    states: tuple[Tensor, Tensor]
    last: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class _Row:
    """Tokens that the policy read, with actions to train on.

    Args:
        episode (`int`): index into the rollout.
        token_ids (`Sequence[int]`): `(L,)`.
        turn (`int`, *optional*): the one turn whose action is trained on here; `None` for all, `-1` for none.
        shift (`int`): position in the episode minus position in this row, of the action tokens.
        is_last (`bool`): the row's last token is the episode's last state.
    """

    episode: int
    token_ids: Sequence[int]
    turn: int | None
    shift: int
    is_last: bool


def make_micro_batches(
    trajectories: Sequence[Trajectory], layout: ActionLayout, size: int, rng: np.random.Generator
) -> list[MicroBatch]:
    """Shuffles the rows that have action tokens into micro-batches of at most `size`."""
    has_tokens = layout.mask.any(dim=1).tolist()
    rows = [row for i, t in enumerate(trajectories) if has_tokens[i] for row in _training_rows(i, t)]
    return _batches([rows[i] for i in rng.permutation(len(rows))], layout, size)


def last_state_batches(trajectories: Sequence[Trajectory], layout: ActionLayout, size: int) -> list[MicroBatch]:
    """Rows without an action, for V(s_T) of truncated episodes whose last state has a window of its own."""
    rows = []
    for i, trajectory in enumerate(trajectories):
        if trajectory.num_steps and len(trajectory.windows) > trajectory.num_steps:
            window = trajectory.windows[-1]
            rows.append(_Row(i, (*window.head, *trajectory.token_ids[window.start :]), -1, 0, is_last=True))
    return _batches(rows, layout, size)


def idle_micro_batches(trajectories: Sequence[Trajectory], layout: ActionLayout, number: int) -> list[MicroBatch]:
    """Micro-batches that train on nothing, for a process that has fewer than the others.

    Processes exchange gradients (and buffers) at every pass, so all of them make the same number.
    """
    return [_batch([_Row(0, trajectories[0].token_ids, -1, 0, is_last=False)], layout)] * number


def _training_rows(episode: int, trajectory: Trajectory) -> Iterator[_Row]:
    if not trajectory.windows:
        yield _Row(episode, trajectory.token_ids, None, 0, is_last=True)
        return
    last_is_apart = len(trajectory.windows) > trajectory.num_steps
    for t, turn in enumerate(trajectory.turns):
        context = trajectory.context(t)
        start, end = turn.action_span
        is_last = t + 1 == trajectory.num_steps and not last_is_apart
        yield _Row(episode, (*context, *trajectory.token_ids[start:end]), t, start - len(context), is_last)


def _batches(rows: Sequence[_Row], layout: ActionLayout, size: int) -> list[MicroBatch]:
    return [_batch(rows[start : start + size], layout) for start in range(0, len(rows), size)]


def _batch(rows: Sequence[_Row], layout: ActionLayout) -> MicroBatch:
    device = layout.mask.device
    episodes = torch.tensor([row.episode for row in rows], device=device)
    mask = layout.mask[episodes]
    for b, row in enumerate(rows):
        if row.turn is not None:
            mask[b] &= layout.turn[row.episode] == row.turn
    shift = torch.tensor([row.shift for row in rows], device=device)
    state_row, column = mask.nonzero(as_tuple=True)
    ends = [(b, len(row.token_ids) - 1) for b, row in enumerate(rows) if row.is_last]
    last = torch.tensor(ends, dtype=torch.long, device=device).reshape(-1, 2)
    return MicroBatch(
        episodes=episodes,
        tokens=pad_rows([row.token_ids for row in rows], device),
        mask=mask,
        states=(state_row, layout.position[episodes][state_row, column] - shift[state_row] - 1),
        last=(last[:, 0], last[:, 1]),
    )
