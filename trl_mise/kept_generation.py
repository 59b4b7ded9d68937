"""Sampling that keeps keys and values between the turns of a conversation, in one loop over all of them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .architectures import attention_masks, masked_attention
from .generation import Sampling
from .heads import backbone_hidden, embedding_weight, lm_logits, text_config
from .packing import plan_batches
from .slot_cache import Place, SlotCache

_MAX_READ_TOKENS = 8192
"""Padded tokens that are read at a time: their mask has as many entries for every column of the cache."""


class KeptGeneration:
    """A [`Generate`] function with a memory: a context that continues one of the last call is read on from there.

    Args:
        policy (`nn.Module`): a causal language model that takes masks of our own, in evaluation mode.
        sampling ([`Sampling`]): how; at most `batch_size` conversations share a cache.

    Contexts are recognised by their tokens: whatever begins with the tokens of a slot continues it. Conversations that
    do not come back are dropped.
    """

    def __init__(self, policy: nn.Module, sampling: Sampling) -> None:
        self.policy, self.sampling = policy, sampling
        self._pools: list[_Pool] = []

    @torch.no_grad()
    def __call__(self, contexts: Sequence[Sequence[int]]) -> list[list[int]]:
        waiting = dict(enumerate(contexts))
        for pool in self._pools:
            for index in pool.claim(waiting):
                del waiting[index]
        self._pools = [pool for pool in self._pools if pool.num_claimed]
        for pool in self._pools:
            pool.admit(waiting)
        while waiting:
            self._pools.append(_Pool(self.policy, self.sampling))
            self._pools[-1].admit(waiting)
        sampled: dict[int, list[int]] = {}
        for pool in self._pools:
            sampled.update(pool.sample(contexts))
        return [sampled[index] for index in range(len(contexts))]


class _Pool:
    """At most `batch_size` conversations that go through the model together."""

    def __init__(self, policy: nn.Module, sampling: Sampling) -> None:
        self.policy, self.sampling = policy, sampling
        self.device = embedding_weight(policy).device
        self.cache = SlotCache(text_config(policy).num_hidden_layers, 0)
        self.kept: list[list[int]] = []
        """Tokens whose keys and values are in the slot."""
        self.claims: list[int | None] = []
        """Index of the context that a slot serves in this call."""

    @property
    def num_claimed(self) -> int:
        return sum(index is not None for index in self.claims)

    def claim(self, waiting: dict[int, Sequence[int]]) -> list[int]:
        """Finds the slot's continuation for every slot; gives the indices of the contexts that are served."""
        self.claims = [None] * len(self.kept)
        unclaimed = dict(waiting)
        for slot, kept in enumerate(self.kept):
            # Episodes come back in the order in which they were, so the first one left is nearly always the right one.
            index = next((i for i, context in unclaimed.items() if _continues(context, kept)), None)
            self.claims[slot] = index
            if index is not None:
                del unclaimed[index]
        return [index for index in self.claims if index is not None]

    def admit(self, waiting: dict[int, Sequence[int]]) -> None:
        """Gives free slots, then new ones, to contexts that continue nothing; drops the slots that stay free."""
        for slot, index in enumerate(self.claims):
            if index is None and waiting:
                self.claims[slot], self.kept[slot] = _take_first(waiting), []
        served = [slot for slot, index in enumerate(self.claims) if index is not None]
        if len(served) < len(self.claims):
            self.cache.keep(torch.tensor(served, device=self.device))
            self.claims, self.kept = [self.claims[s] for s in served], [self.kept[s] for s in served]
        while waiting and len(self.claims) < self.sampling.batch_size:
            self.claims.append(_take_first(waiting))
            self.kept.append([])
        self.cache.num_slots = len(self.claims)

    def sample(self, contexts: Sequence[Sequence[int]]) -> dict[int, list[int]]:
        """One action for every slot, by the index of its context."""
        served = [list(contexts[index]) for index in self.claims if index is not None]
        states = self._read(served)
        actions = self._decode(states, torch.tensor([len(context) for context in served], device=self.device))
        for slot, (context, action) in enumerate(zip(served, actions, strict=True)):
            # The last token was sampled, but never read.
            self.kept[slot] = [*context, *action[:-1]]
        return dict(zip((index for index in self.claims if index is not None), actions, strict=True))

    def _read(self, served: Sequence[Sequence[int]]) -> Tensor:
        """Reads what is new of every context; `(B, H)` states of their last tokens."""
        fresh = [slot for slot, kept in enumerate(self.kept) if not kept]
        going_on = [slot for slot, kept in enumerate(self.kept) if kept]
        parts = [part for group in (fresh, going_on) for part in self._parts(group, served)]
        states = [self._read_part(part, served) for part in parts]
        order = torch.tensor([slot for part in parts for slot in part], device=self.device)
        return torch.cat(states)[order.argsort()]

    def _parts(self, slots: Sequence[int], served: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        lengths = [len(served[slot]) - len(self.kept[slot]) for slot in slots]
        for batch in plan_batches(lengths, _MAX_READ_TOKENS):
            yield sorted(slots[i] for i in batch)

    def _read_part(self, part: Sequence[int], served: Sequence[Sequence[int]]) -> Tensor:
        rows = [served[slot][len(self.kept[slot]) :] for slot in part]
        size, device = max(map(len, rows)), self.device
        input_ids = torch.tensor([[*row, *[0] * (size - len(row))] for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        start = torch.tensor([len(self.kept[slot]) for slot in part], device=device)
        steps = torch.arange(size, device=device)[None]
        # What fills up a row stands at its last position: it sees something, and nobody sees it.
        position = start[:, None] + torch.minimum(steps, lengths[:, None] - 1)  # (B, N)
        row, column = (steps < lengths[:, None]).nonzero(as_tuple=True)
        slots = torch.tensor(part, device=device)
        everyone = len(part) == self.cache.num_slots
        place = Place(
            slots=slots[row],
            columns=position[row, column],
            new=(row, column),
            rows=None if everyone else slots,
            width=int((start + lengths).max()),
        )
        hidden = self._forward(input_ids, position, place)
        return hidden[torch.arange(len(part), device=device), lengths - 1]

    def _forward(self, input_ids: Tensor, position: Tensor, place: Place) -> Tensor:
        """`(B, N, H)`: every token sees the columns of its slot up to its own."""
        columns = torch.arange(place.width, device=self.device)[None]
        allowed = columns[:, None] <= position[:, :, None]
        masks = attention_masks(self.policy, allowed, position, columns.expand(len(position), -1))
        with masked_attention(self.policy):
            return backbone_hidden(self.policy, input_ids, masks, position, cache=self.cache.at(place))

    def _decode(self, states: Tensor, position: Tensor) -> list[list[int]]:
        """Samples from `(B, H)` states until every row has stopped; `position` `(B,)` is that of the next token."""
        stops = torch.tensor(self.sampling.stop_token_ids, dtype=torch.long, device=self.device)
        slots = torch.arange(len(states), device=self.device)
        sampled: list[Tensor] = []
        stopped = torch.zeros(len(states), dtype=torch.bool, device=self.device)
        lengths = torch.zeros(len(states), dtype=torch.long, device=self.device)
        width = int(position.max())
        while True:
            token = self._choose(states)
            sampled.append(token)
            lengths += ~stopped
            stopped |= torch.isin(token, stops)
            if len(sampled) == self.sampling.max_new_tokens or bool(stopped.all()):
                break
            width += 1
            # A row that has stopped goes on writing to the column after its end, which its next turn writes over.
            place = Place(slots, position, (slots, torch.zeros_like(slots)), None, width)
            states = self._forward(token[:, None], position[:, None], place)[:, 0]
            position = position + ~stopped
        rows = torch.stack(sampled, 1).tolist()
        return [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]

    def _choose(self, states: Tensor) -> Tensor:
        """`(B,)` tokens drawn from the tempered softmax, or the likeliest."""
        logits = lm_logits(self.policy, states)
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial((logits / self.sampling.temperature).softmax(-1), 1).squeeze(1)


def _take_first(waiting: dict[int, Sequence[int]]) -> int:
    index = next(iter(waiting))
    del waiting[index]
    return index


def _continues(context: Sequence[int], kept: Sequence[int]) -> bool:
    """Whether the context begins with `kept` and has something new."""
    end = len(kept)
    # Conversations often begin alike: their ends tell them apart sooner.
    return 0 < end < len(context) and context[end - 1] == kept[-1] and list(context[:end]) == kept
