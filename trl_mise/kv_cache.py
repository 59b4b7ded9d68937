"""Keys and values of token rows that were read before, beside the positions at which they stand.

Masks are made from positions, never from columns: padding on either side and several questions in one row are then
the same thing, columns that a query does not see.
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
        valid (`Tensor`): `(B, C)` bool, False = padding.
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

    def dynamic_cache(self) -> DynamicCache:
        """A transformers cache over the same tensors; it grows by concatenation and leaves ours as they are."""
        return DynamicCache(self.layers)


def read(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, KVCache]:
    """Reads rows from their beginning, as the model itself would: hidden states `(B, L, H)`, and what to keep.

    Args:
        model (`nn.Module`): a `...ForCausalLM`, possibly in a PEFT wrapper.
        batch ([`TokenBatch`]): `(B, L)`, padded on either side.
    """
    # Without the config: sliding layers must keep all columns, their mask is made from positions.
    cache = DynamicCache()
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


def _layers(cache: DynamicCache) -> list[tuple[Tensor | None, Tensor | None]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _rows(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.index_select(0, rows.to(tensor.device))
