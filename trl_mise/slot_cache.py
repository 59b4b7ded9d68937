"""Keys and values of conversations under way: a slot for each, and in it every token in the column of its position.

Columns are positions, so there is no padding and there are no holes, whatever the rows' lengths: a query sees the
columns up to its own position. A slot is taken over by another conversation by writing over it from column 0.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_COLUMNS_AT_A_TIME = 128


@dataclass(frozen=True)
class Place:
    """Where a pass reads and writes.

    Args:
        slots (`Tensor`): `(M,)` and
        columns (`Tensor`): `(M,)` where the new tokens go.
        new (`tuple[Tensor, Tensor]`): rows and columns `(M,)` of these tokens in the pass's `(B, N)` input.
        rows (`Tensor`, *optional*): `(B,)` the slots that the pass reads; all of them, in order, by default.
        width (`int`): columns that it reads.
    """

    slots: Tensor
    columns: Tensor
    new: tuple[Tensor, Tensor]
    rows: Tensor | None
    width: int


class SlotCache(Cache):
    """A transformers cache of `num_slots` rows; [`at`] says where the next pass reads and writes.

    Args:
        num_layers (`int`): of the model.
        num_slots (`int`): rows; may be raised at any time.
    """

    def __init__(self, num_layers: int, num_slots: int) -> None:
        super().__init__(layers=[_SlotLayer() for _ in range(num_layers)])
        self.num_slots = num_slots

    def at(self, place: Place) -> "SlotCache":
        """This cache, for a pass at `place`."""
        for layer in self.layers:
            layer.place, layer.num_slots = place, self.num_slots
        return self

    def keep(self, slots: Tensor) -> None:
        """Keeps these slots `(b,)`, in that order, and drops the rest."""
        self.num_slots = len(slots)
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = (t.index_select(0, slots.to(t.device)) for t in (layer.keys, layer.values))


class _SlotLayer(DynamicLayer):
    """`(slots, heads, columns, D)` keys and values, allocated ahead; what is not written yet is 0, never NaN."""

    keys: Tensor
    values: Tensor
    place: Place
    num_slots: int

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._written(self.keys, key_states)
        self.values = self._written(self.values, value_states)
        return self._read(self.keys), self._read(self.values)

    def _written(self, kept: Tensor, states: Tensor) -> Tensor:
        """`kept` with the new tokens' states `(B, heads, N, D)`; larger where it had no room."""
        place = self.place
        room = self._with_room(kept, states)
        # A model may be spread over several devices; the indices are on the first.
        slots, columns, row, step = (index.to(states.device) for index in (place.slots, place.columns, *place.new))
        room[slots, :, columns] = states.transpose(1, 2)[row, step]
        return room

    def _with_room(self, kept: Tensor, states: Tensor) -> Tensor:
        slots, columns = (0, 0) if kept.dim() < 4 else (kept.shape[0], kept.shape[2])
        if columns >= self.place.width and slots >= self.num_slots:
            return kept
        wider = -(-self.place.width // _COLUMNS_AT_A_TIME) * _COLUMNS_AT_A_TIME
        shape = (max(slots, self.num_slots), states.shape[1], max(columns, wider), states.shape[3])
        room = states.new_zeros(shape)
        if columns:
            room[:slots, :, :columns] = kept
        return room

    def _read(self, kept: Tensor) -> Tensor:
        seen = kept[:, :, : self.place.width]
        return seen if self.place.rows is None else seen.index_select(0, self.place.rows.to(seen.device))

    def get_seq_length(self) -> int:
        return self.place.width if self.is_initialized else 0
