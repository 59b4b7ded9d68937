"""Token rows of unequal length as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded token rows; the mask comes from the rows' lengths, never from their ids.

    Args:
        input_ids (`Tensor`): `(B, L)`.
        attention_mask (`Tensor`): `(B, L)` 1 = a token of the row.
        position_ids (`Tensor`): `(B, L)`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor


def pad_rows(
    rows: Sequence[Sequence[int]], device: torch.device | str = "cpu", *, left: bool = False, pad_id: int = 0
) -> TokenBatch:
    """Pads token rows into a [`TokenBatch`]; positions count real tokens only."""
    length = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    for b, row in enumerate(rows):
        columns = slice(length - len(row), length) if left else slice(0, len(row))
        input_ids[b, columns] = torch.tensor(list(row), dtype=torch.long)
        attention_mask[b, columns] = 1
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    return TokenBatch(input_ids.to(device), attention_mask.to(device), position_ids.to(device))
