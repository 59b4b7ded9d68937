"""Keys and values of token rows that were read before, beside the positions at which they stand.

Masks are made from positions, never from columns: padding on either side, holes between two turns, and several
questions in one row are then all the same thing, columns that a query does not see.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from .architectures import attention_masks, masked_attention
from .heads import backbone_hidden
from .token_batch import TokenBatch


@dataclass(frozen=True)
class KVCache:
    """B rows of C columns. Never changed in place: reading on gives a new one.

    Args:
        layers (`Sequence[tuple[Tensor, Tensor]]`): keys and values of each layer, `(B, heads, C, D)` each; `None` in
            layers that share those of another.
        position (`Tensor`): `(B, C)` position of each token in its row.
        valid (`Tensor`): `(B, C)` bool, False = padding or a hole.
    """

    layers: Sequence[tuple[Tensor | None, Tensor | None]]
    position: Tensor
    valid: Tensor

    @property
    def num_rows(self) -> int:
        return self.position.shape[0]

    @property
    def width(self) -> int:
        return self.position.shape[1]

    def select(self, rows: Tensor) -> "KVCache":
        """The rows `(b,)` in that order, repeated where named twice."""
        layers = [(_rows(keys, rows), _rows(values, rows)) for keys, values in self.layers]
        return KVCache(layers, self.position[rows], self.valid[rows])

    def without_holes(self) -> "KVCache":
        """The same rows with every token moved to the right end, the padding before it."""
        lengths = self.valid.sum(1)
        width = int(lengths.max())
        # A stable sort keeps the order of the tokens: first what is no token, then the tokens.
        columns = self.valid.long().argsort(dim=1, stable=True)[:, self.width - width :]  # (B, width)
        layers = [(_columns(keys, columns), _columns(values, columns)) for keys, values in self.layers]
        return KVCache(layers, self.position.gather(1, columns), self.valid.gather(1, columns))

    def joined(self, other: "KVCache") -> "KVCache":
        """The rows of both, the narrower ones padded on the left."""
        width = max(self.width, other.width)
        first, second = self._widened(width), other._widened(width)
        layers = [
            (_cat(a_keys, b_keys), _cat(a_values, b_values))
            for (a_keys, a_values), (b_keys, b_values) in zip(first.layers, second.layers, strict=True)
        ]
        position, valid = torch.cat([first.position, second.position]), torch.cat([first.valid, second.valid])
        return KVCache(layers, position, valid)

    def _widened(self, width: int) -> "KVCache":
        missing = width - self.width
        if not missing:
            return self
        pad = nn.functional.pad
        layers = [
            (
                None if keys is None else pad(keys, (0, 0, missing, 0)),
                None if values is None else pad(values, (0, 0, missing, 0)),
            )
            for keys, values in self.layers
        ]
        return KVCache(layers, pad(self.position, (missing, 0)), pad(self.valid, (missing, 0)))

    def dynamic_cache(self) -> DynamicCache:
        """A transformers cache over the same tensors; it grows by concatenation and leaves ours as they are."""
        return DynamicCache(self.layers)


def read(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, KVCache]:
    """Reads rows from their beginning, as the model itself would: hidden states `(B, L, H)`, and what to keep.

    Args:
        model (`nn.Module`): a `...ForCausalLM`, possibly in a PEFT wrapper.
        batch ([`TokenBatch`]): `(B, L)`, padded on either side.
    """
    cache = (
        DynamicCache()
    )  # without the config: sliding layers must keep all columns, their mask is made from positions
    hidden = backbone_hidden(model, batch.input_ids, batch.attention_mask, batch.position_ids, cache=cache)
    return hidden, KVCache(_layers(cache), batch.position_ids, batch.attention_mask.bool())


def read_on(model: nn.Module, cache: KVCache, batch: TokenBatch, allowed: Tensor) -> tuple[Tensor, KVCache]:
    """Reads N more tokens per row against the cache: hidden states `(B, N, H)`, and the cache with these at its end.

    Args:
        cache ([`KVCache`]): `(B, C)`.
        batch ([`TokenBatch`]): `(B, N)` the new tokens at their positions.
        allowed (`Tensor`): `(B, N, C + N)` bool, which columns each new token sees.
    """
    position = torch.cat([cache.position, batch.position_ids], 1)
    valid = torch.cat([cache.valid, batch.attention_mask.bool()], 1)
    masks = attention_masks(model, allowed, batch.position_ids, position)
    grown = cache.dynamic_cache()
    with masked_attention(model):
        hidden = backbone_hidden(model, batch.input_ids, masks, batch.position_ids, cache=grown)
    return hidden, KVCache(_layers(grown), position, valid)


def continuation(cache: KVCache, batch: TokenBatch) -> Tensor:
    """`(B, N, C + N)` bool: every new token sees its row's kept tokens and the new ones up to itself."""
    new = batch.attention_mask.bool()
    causal = torch.ones(new.shape[1], new.shape[1], dtype=torch.bool, device=new.device).tril()
    own = causal & new[:, None, :]
    # Padding sees itself, so that no row of the softmax is empty (NaN).
    own = own | torch.eye(new.shape[1], dtype=torch.bool, device=new.device)
    return torch.cat([cache.valid[:, None, :].expand(-1, new.shape[1], -1), own], 2)


def _layers(cache: DynamicCache) -> list[tuple[Tensor | None, Tensor | None]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _rows(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.index_select(0, rows.to(tensor.device))


def _columns(tensor: Tensor | None, columns: Tensor) -> Tensor | None:
    if tensor is None:
        return None
    index = columns.to(tensor.device)[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
    return tensor.gather(2, index)


def _cat(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat([a, b])
