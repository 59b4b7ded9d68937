"""The four ways to ask every question: two in one pass, one with copies of the cache, and the naive reference.

All of them give, for every row, the `(T, K)` logits of its verdicts. How they compare is in `benchmarks/README.md`.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from .architectures import attention_masks, masked_attention
from .heads import accepts, backbone_hidden, embedding_weight, lm_logits, unwrap_causal_lm
from .kv_cache import KVCache, read, read_on
from .packing import QuestionTree, ScoringRow, Verdicts, plan_batches, question_tree
from .token_batch import TokenBatch, pad_rows
from .token_log_probs import token_log_probs


def score_cached_packed(
    model: nn.Module, rows: Sequence[ScoringRow], verdicts: Verdicts, max_tokens: int
) -> list[Tensor]:
    """Reads the trajectories as the model would, then all their questions in one row against the un-repeated cache."""
    trees = [question_tree(row, verdicts) for row in rows]
    results: dict[int, Tensor] = {}
    for batch in plan_batches([_packed_length(r, t) for r, t in zip(rows, trees, strict=True)], max_tokens):
        prefixes = [rows[i].token_ids[: rows[i].prefix_length] for i in batch]
        _, cache = read(model, pad_rows(prefixes, embedding_weight(model).device))
        results.update(zip(batch, ask(model, cache, [trees[i] for i in batch], verdicts), strict=True))
    return [results[i] for i in range(len(rows))]


def ask(model: nn.Module, cache: KVCache, trees: Sequence[QuestionTree], verdicts: Verdicts) -> list[Tensor]:
    """The verdicts on trajectories that were just read: scoring that rides on somebody else's pass.

    Args:
        cache ([`KVCache`]): B trajectories, padded on either side; they may go on after what the questions see.
        trees (`Sequence[QuestionTree]`): B.

    Returns:
        `list[Tensor]`: `(T, K)` logits per row.
    """
    batch, allowed = _tree_batch(trees, cache.position, cache.valid)
    hidden, _ = read_on(model, cache, batch, allowed)
    return _read_verdicts(model, hidden, trees, [0] * len(trees), verdicts)


@dataclass(frozen=True)
class Questionnaire:
    """The questions about a batch of episodes, laid out to ride on a pass that reads the episodes anyway.

    Args:
        trees (`Sequence[QuestionTree | None]`): one per episode, `None` where it has no step.
        verdicts ([`Verdicts`]): what may be answered.
        max_tokens (`int`): most columns of the pass over the questions, times rows; one row may exceed it.
    """

    trees: Sequence[QuestionTree | None]
    verdicts: Verdicts
    max_tokens: int

    def select(self, episodes: Sequence[int]) -> "Questionnaire":
        return replace(self, trees=[self.trees[i] for i in episodes])

    def ask(self, model: nn.Module, cache: KVCache) -> list[Tensor]:
        """`(T, K)` logits for each row of the cache; every one of them must have a step."""
        trees = [tree for tree in self.trees if tree is not None]
        widest = cache.width + max(tree.size for tree in trees)
        at_once = max(1, self.max_tokens // widest)
        if at_once >= len(trees):
            return ask(model, cache, trees, self.verdicts)
        parts = [range(start, min(start + at_once, len(trees))) for start in range(0, len(trees), at_once)]
        rows = [torch.tensor(list(part), device=cache.position.device) for part in parts]
        return [
            logits
            for part, chosen in zip(parts, rows, strict=True)
            for logits in ask(model, cache.select(chosen), [trees[i] for i in part], self.verdicts)
        ]


def score_packed(model: nn.Module, rows: Sequence[ScoringRow], verdicts: Verdicts, max_tokens: int) -> list[Tensor]:
    """One row `[trajectory, questions]` per trajectory, one forward: the way for gradients."""
    device = embedding_weight(model).device
    trees = [question_tree(row, verdicts) for row in rows]
    results: dict[int, Tensor] = {}
    for indices in plan_batches([_packed_length(r, t) for r, t in zip(rows, trees, strict=True)], max_tokens):
        chosen = [trees[i] for i in indices]
        prefix = pad_rows([rows[i].token_ids[: rows[i].prefix_length] for i in indices], device)
        valid = prefix.attention_mask.bool()
        batch, asked = _tree_batch(chosen, prefix.position_ids, valid)
        width, size = valid.shape[1], batch.input_ids.shape[1]
        allowed = asked.new_zeros(len(indices), width + size, width + size)
        # Padding comes last here, so that a causal mask keeps it from the rest.
        allowed[:, :width, :width] = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        allowed[:, width:] = asked
        position = torch.cat([prefix.position_ids, batch.position_ids], 1)
        masks = attention_masks(model, allowed, position, position)
        with masked_attention(model):
            hidden = backbone_hidden(model, torch.cat([prefix.input_ids, batch.input_ids], 1), masks, position)
        results.update(
            zip(indices, _read_verdicts(model, hidden, chosen, [width] * len(chosen), verdicts), strict=True)
        )
    return [results[i] for i in range(len(rows))]


def score_repeated(model: nn.Module, rows: Sequence[ScoringRow], verdicts: Verdicts, max_tokens: int) -> list[Tensor]:
    """Reads each trajectory once and continues copies of its cache: for layers that no mask can keep apart."""
    return [_score_row_repeated(model, row, verdicts, max_tokens) for row in rows]


def _score_row_repeated(model: nn.Module, row: ScoringRow, verdicts: Verdicts, max_tokens: int) -> Tensor:
    device = embedding_weight(model).device
    cache = DynamicCache(config=unwrap_causal_lm(model).config)
    results: dict[int, Tensor] = {}
    done = 0
    # Questions that see less come first: the cache of the longer prefix continues that of the shorter one.
    for visible in sorted(set(row.visible)):
        columns = torch.arange(visible, device=device)[None]
        ids = torch.tensor([list(row.token_ids[done:visible])], dtype=torch.long, device=device)
        backbone_hidden(model, ids, torch.ones_like(columns), columns[:, done:], cache=cache)
        done = visible
        steps = [t for t, seen in enumerate(row.visible) if seen == visible]
        longest = visible + max(len(row.suffixes[t]) for t in steps) + max(len(b) for b in verdicts.branches)
        at_once = max(1, max_tokens // (longest * len(verdicts.branches)))
        for start in range(0, len(steps), at_once):
            group = steps[start : start + at_once]
            logits = _continue_copies(model, cache, visible, [row.suffixes[t] for t in group], verdicts)
            results.update(zip(group, logits, strict=True))
    return torch.stack([results[t] for t in range(len(row.suffixes))])


def _continue_copies(
    model: nn.Module, cache: DynamicCache, visible: int, suffixes: Sequence[Sequence[int]], verdicts: Verdicts
) -> Tensor:
    """`(T, K)` verdicts on one trajectory; one copy of the cache per question and branch."""
    device = embedding_weight(model).device
    paths = [[*suffix, *branch] for suffix in suffixes for branch in verdicts.branches]
    batch = pad_rows(paths, device)
    copies = copy.deepcopy(cache)  # layers with a recurrent state change it in place
    copies.reorder_cache(torch.zeros(len(paths), dtype=torch.long, device=device))
    mask = torch.cat([batch.attention_mask.new_ones(len(paths), visible), batch.attention_mask], 1)
    hidden = backbone_hidden(model, batch.input_ids, mask, batch.position_ids + visible, cache=copies)
    states = [
        hidden[index, len(suffix) - 1 : len(suffix) + len(branch)]
        for index, (suffix, branch) in enumerate((s, b) for s in suffixes for b in verdicts.branches)
    ]
    if verdicts.are_words:
        states = [state.expand(len(verdicts.token_ids), -1) for state in states]
    return _verdict_logits(model, torch.cat(states), verdicts)


SCORERS = {"cached_packed": score_cached_packed, "packed": score_packed, "kv_repeat": score_repeated}
"""The ways that take less than one forward per question."""


def score_naive(model: nn.Module, rows: Sequence[ScoringRow], verdicts: Verdicts) -> list[Tensor]:
    """By the model's own `forward`, one question (and verdict) at a time: the reference for everything else."""
    return [
        torch.stack([_score_step_naive(model, prefix, verdicts) for prefix in _naive_prefixes(row)]) for row in rows
    ]


def _naive_prefixes(row: ScoringRow) -> Iterator[list[int]]:
    for suffix, visible in zip(row.suffixes, row.visible, strict=True):
        yield [*row.token_ids[:visible], *suffix]


def _score_step_naive(model: nn.Module, prefix: list[int], verdicts: Verdicts) -> Tensor:
    """`(K,)`."""
    device = embedding_weight(model).device
    logits = []
    for branch in verdicts.branches:
        input_ids = torch.tensor([[*prefix, *branch]], dtype=torch.long, device=device)
        keep = {"logits_to_keep": len(branch) + 1} if accepts(unwrap_causal_lm(model), "logits_to_keep") else {}
        output = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False, **keep)
        logits.append(_at_least_float32(output.logits[0, -len(branch) - 1 :]))
    if verdicts.are_words:
        return logits[0][0, verdicts.words]
    sums = [
        tensor.log_softmax(-1).gather(1, torch.tensor(tokens, device=device)[:, None]).sum()
        for tensor, tokens in zip(logits, verdicts.token_ids, strict=True)
    ]
    return torch.stack(sums)


def _packed_length(row: ScoringRow, tree: QuestionTree) -> int:
    return row.prefix_length + tree.size


def _tree_batch(trees: Sequence[QuestionTree], position: Tensor, valid: Tensor) -> tuple[TokenBatch, Tensor]:
    """The questions as `(B, Q)` rows, and which of the `(B, C)` trajectory columns and of each other they see.

    Args:
        trees (`Sequence[QuestionTree]`): B.
        position (`Tensor`): `(B, C)` of the trajectories' tokens.
        valid (`Tensor`): `(B, C)` bool, False = padding.

    Returns:
        `tuple[TokenBatch, Tensor]`: the rows, and `(B, Q, C + Q)` bool.
    """
    shape = (len(trees), max(tree.size for tree in trees))
    token_ids, positions, visible, mask = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    sees = np.zeros((*shape, shape[1]), dtype=bool)
    for b, tree in enumerate(trees):
        token_ids[b, : tree.size], positions[b, : tree.size] = tree.token_ids, tree.position
        visible[b, : tree.size], mask[b, : tree.size] = tree.visible, 1
        sees[b, : tree.size, : tree.size] = tree.sees
    # Padding sees itself, so that no row of the softmax is empty (NaN).
    sees |= np.eye(shape[1], dtype=bool)
    device = position.device
    batch = TokenBatch(*(torch.from_numpy(array).to(device) for array in (token_ids, mask, positions)))
    before = valid[:, None, :] & (position[:, None, :] < torch.from_numpy(visible).to(device)[:, :, None])
    return batch, torch.cat([before, torch.from_numpy(sees).to(device)], 2)


def _read_verdicts(
    model: nn.Module, hidden: Tensor, trees: Sequence[QuestionTree], offsets: Sequence[int], verdicts: Verdicts
) -> list[Tensor]:
    """`(T, K)` per tree from the hidden states `(B, ..., H)`; tree b starts at column `offsets[b]`."""
    rows = np.repeat(np.arange(len(trees)), [len(tree.read_at) for tree in trees])
    columns = np.concatenate([tree.read_at + offset for tree, offset in zip(trees, offsets, strict=True)])
    states = hidden[torch.from_numpy(rows).to(hidden.device), torch.from_numpy(columns).to(hidden.device)]
    logits = _verdict_logits(model, states, verdicts)
    return list(logits.split([tree.num_suffixes for tree in trees]))


def _verdict_logits(model: nn.Module, states: Tensor, verdicts: Verdicts) -> Tensor:
    """`(S, K)` from the states before each token of each verdict of each suffix, `(S * sum_k m_k, H)`."""
    lengths = [len(tokens) for tokens in verdicts.token_ids]
    if verdicts.are_words:
        return lm_logits(model, states[:: len(lengths)], token_ids=verdicts.words)
    per_suffix = torch.tensor([token for tokens in verdicts.token_ids for token in tokens], device=states.device)
    token_ids = per_suffix.repeat(len(states) // len(per_suffix))
    log_probs, _ = token_log_probs(model, states, token_ids, temperature=1.0)
    by_verdict = log_probs.view(-1, len(per_suffix)).split(lengths, dim=1)
    return torch.stack([part.sum(1) for part in by_verdict], 1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
