"""Verdict logits for every step of every trajectory: the naive reference and the packed one-pass scorer.

A trajectory of L tokens is asked T questions of q tokens. `naive` runs T forwards over trajectory and question.
`packed` runs one: the row `[trajectory, s_1, ..., s_T]`, where question t sees the first `visible[t]` tokens of the
trajectory and itself, at positions `visible[t], visible[t] + 1, ...`: about `1 + T q / L` forwards instead of T.
"""

import functools
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from .heads import backbone_hidden, lm_logits, text_config, unwrap_causal_lm

Method = Literal["auto", "packed", "naive"]

DEFAULT_MAX_TOKENS = 16384

# Families whose attention is one mask, the same in every layer, and whose positions come from `position_ids` alone.
# Each was compared with the naive scorer on a tiny random model. Left out on purpose: ALiBi (bloom, mpt, falcon),
# recurrent or hybrid layers (mamba, jamba, qwen3_next, lfm2, ...), sparse indexers (deepseek_v32, ...).
PACKED_MODEL_TYPES = frozenset(
    {
        "apertus",
        "arcee",
        "cohere",
        "deepseek_v2",
        "deepseek_v3",
        "ernie4_5",
        "gemma",
        "glm",
        "glm4",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gptj",
        "granite",
        "granitemoe",
        "helium",
        "hunyuan_v1_dense",
        "llama",
        "ministral3",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo",
        "olmo2",
        "olmoe",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)
_PACKED_ATTENTION = ("sdpa", "eager")
# Rotary embeddings whose frequencies depend on the longest position in the batch: one row would change another.
_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class ScoringRow:
    """One trajectory and the questions about it.

    Args:
        token_ids (`Sequence[int]`): `(L,)` the trajectory.
        suffixes (`Sequence[Sequence[int]]`): `(T, q_t)` token ids of each question.
        visible (`Sequence[int]`): `(T,)` suffix t follows `token_ids[:visible[t]]` and sees nothing else.
    """

    token_ids: Sequence[int]
    suffixes: Sequence[Sequence[int]]
    visible: Sequence[int]

    @property
    def prefix_length(self) -> int:
        """Tokens of the trajectory that at least one suffix sees; the rest need not be computed."""
        return max(self.visible)

    @property
    def packed_length(self) -> int:
        return self.prefix_length + sum(len(suffix) for suffix in self.suffixes)


@dataclass(frozen=True, slots=True)
class VerdictLogits:
    """Logits of the verdict words after each suffix, in the order of the rows and of their suffixes.

    Args:
        logits (`torch.Tensor`): `(S, K)`, S = all suffixes, at least float32.
        row_index (`torch.Tensor`): `(S,)` index of the row that a suffix belongs to.
        step_index (`torch.Tensor`): `(S,)` index of the suffix within its row.
        method (`str`): `"packed"` or `"naive"`.
    """

    logits: torch.Tensor
    row_index: torch.Tensor
    step_index: torch.Tensor
    method: str


def score_steps(
    model: nn.Module,
    rows: Sequence[ScoringRow],
    verdict_ids: Sequence[int],
    *,
    method: Method = "auto",
    max_tokens: int | None = None,
    requires_grad: bool = False,
) -> VerdictLogits:
    """Scores every suffix of every row: logits of the K verdict words as the token after the suffix.

    Args:
        model (`nn.Module`): a `...ForCausalLM`, possibly in a PEFT wrapper; its train/eval mode is left as it is.
        rows (`Sequence[ScoringRow]`): trajectories and their questions.
        verdict_ids (`Sequence[int]`): `(K,)` vocabulary ids of the verdicts.
        method (`"auto"`, `"packed"` or `"naive"`): `"auto"` packs where the architecture allows it, and otherwise
            warns once and is naive.
        max_tokens (`int`, *optional*, defaults to 16384): padded tokens of one forward; a row may exceed it.
        requires_grad (`bool`): keep the graph (calibration).

    Raises:
        ValueError: a row that cannot be scored, a verdict id outside the vocabulary, or `method="packed"` on a model
            that packing would silently score wrongly.
    """
    config = text_config(model)
    _check_inputs(config, rows, verdict_ids)
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}; leave it None for {DEFAULT_MAX_TOKENS}")
    resolved = resolve_method(model, method)
    counts = [len(row.suffixes) for row in rows]
    with torch.set_grad_enabled(requires_grad):
        if not rows:
            logits = torch.zeros(0, len(verdict_ids), device=_embedding_weight(model).device)
        elif resolved == "packed":
            logits = _score_packed(model, rows, verdict_ids, max_tokens or DEFAULT_MAX_TOKENS)
        else:
            logits = _score_naive(model, rows, verdict_ids)
    return VerdictLogits(
        logits=logits,
        row_index=torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts, dtype=torch.long)),
        step_index=torch.tensor([step for count in counts for step in range(count)], dtype=torch.long),
        method=resolved,
    )


def resolve_method(model: nn.Module, method: Method = "auto") -> Literal["packed", "naive"]:
    """The scorer that `method` means for this model; see [`score_steps`]."""
    if method not in ("auto", "packed", "naive"):
        raise ValueError(f"method must be 'auto', 'packed' or 'naive', got {method!r}")
    if method == "naive":
        return "naive"
    obstacle = packing_obstacle(model)
    if obstacle is None:
        return "packed"
    if method == "packed":
        raise ValueError(f"method='packed' would be silently wrong here: {obstacle}; use method='auto' or 'naive'")
    _warn_once(f"hindsight scoring falls back to one forward per step (slow): {obstacle}")
    return "naive"


def packing_obstacle(model: nn.Module) -> str | None:
    """Why this model's layers cannot be given one 4D mask with restarted positions; `None` where they can."""
    config = text_config(model)
    kind, attention = config.model_type, getattr(unwrap_causal_lm(model).config, "_attn_implementation", None)
    layer_types = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if kind not in PACKED_MODEL_TYPES:
        return f"model type {kind!r} is not known to have full attention in every layer"
    if layer_types - {"full_attention"}:
        return f"model type {kind!r} has layers of type {sorted(layer_types - {'full_attention'})}"
    if not layer_types and window is not None:
        return f"model type {kind!r} has sliding window attention (config.sliding_window={window})"
    if rope.get("rope_type") in _BATCH_DEPENDENT_ROPE:
        return f"the rotary embedding {rope['rope_type']!r} depends on the other rows of the batch"
    if attention not in _PACKED_ATTENTION:
        return f"attention implementation {attention!r} takes no 4D mask; load with attn_implementation='sdpa'"
    return None


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)


def _check_inputs(config: Any, rows: Sequence[ScoringRow], verdict_ids: Sequence[int]) -> None:
    vocab_size = config.vocab_size
    if not verdict_ids or not all(0 <= index < vocab_size for index in verdict_ids):
        raise ValueError(f"verdict_ids must be ids in [0, {vocab_size}), the model's vocabulary, got {verdict_ids!r}")
    max_positions = getattr(config, "max_position_embeddings", None)
    for index, row in enumerate(rows):
        _check_row(index, row, max_positions)


def _check_row(index: int, row: ScoringRow, max_positions: int | None) -> None:
    length = len(row.token_ids)
    if length == 0:
        raise ValueError(f"rows[{index}]: the trajectory is empty; a question needs something to be about")
    if not row.suffixes:
        raise ValueError(f"rows[{index}]: no suffix to score; leave trajectories without steps out of rows")
    if len(row.visible) != len(row.suffixes):
        raise ValueError(
            f"rows[{index}]: {len(row.suffixes)} suffixes but {len(row.visible)} values in visible; give one for each"
        )
    for step, (suffix, visible) in enumerate(zip(row.suffixes, row.visible, strict=True)):
        if not len(suffix):
            raise ValueError(f"rows[{index}]: suffix {step} is empty; a verdict is read after its last token")
        if not 1 <= visible <= length:
            raise ValueError(
                f"rows[{index}]: visible[{step}] must be in [1, {length}] (the trajectory), got {visible}"
            )
        if max_positions is not None and visible + len(suffix) > max_positions:
            raise ValueError(
                f"rows[{index}]: trajectory of {visible} tokens plus suffix {step} of {len(suffix)} exceed the "
                f"model's {max_positions} positions (max_position_embeddings); shorten the episodes or "
                "the hindsight prompt"
            )


def _score_naive(model: nn.Module, rows: Sequence[ScoringRow], verdict_ids: Sequence[int]) -> torch.Tensor:
    """`(S, K)` by the model's own `forward`, one suffix at a time: the reference for everything else."""
    device = _embedding_weight(model).device
    takes_keep = "logits_to_keep" in inspect.signature(unwrap_causal_lm(model).forward).parameters
    options: dict[str, Any] = {"logits_to_keep": 1} if takes_keep else {}
    logits = []
    for row in rows:
        for suffix, visible in zip(row.suffixes, row.visible, strict=True):
            input_ids = torch.tensor([[*row.token_ids[:visible], *suffix]], dtype=torch.long, device=device)
            output = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False, **options)
            logits.append(output.logits[0, -1, list(verdict_ids)])
    stacked = torch.stack(logits)
    return stacked if stacked.dtype == torch.float64 else stacked.float()


def _score_packed(
    model: nn.Module, rows: Sequence[ScoringRow], verdict_ids: Sequence[int], max_tokens: int
) -> torch.Tensor:
    """`(S, K)` with one row per trajectory, rows of similar length together."""
    weight = _embedding_weight(model)
    chunks: dict[int, torch.Tensor] = {}
    for batch in plan_batches([row.packed_length for row in rows], max_tokens):
        packed = _pack([rows[index] for index in batch]).to(weight.device)
        mask = torch.zeros(packed.allowed.shape, dtype=_mask_dtype(weight), device=weight.device)
        mask = mask.masked_fill_(~packed.allowed, torch.finfo(mask.dtype).min)
        hidden = backbone_hidden(model, packed.input_ids, mask[:, None], packed.position_ids)
        at_end = hidden[packed.last_row.to(hidden.device), packed.last_column.to(hidden.device)]  # (S_batch, H)
        logits = lm_logits(model, at_end, token_ids=verdict_ids)
        sizes = [len(rows[index].suffixes) for index in batch]
        chunks.update(zip(batch, logits.split(sizes), strict=True))
    return torch.cat([chunks[index] for index in range(len(rows))])


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups rows by length so that rows times the longest of a group stay within `max_tokens`, where one row does."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # Longest first, so the first row of a batch sets its width.
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


@dataclass(frozen=True, slots=True)
class _PackedBatch:
    """B packed rows, right-padded to P tokens, with S suffixes in all."""

    input_ids: torch.Tensor  # (B, P)
    position_ids: torch.Tensor  # (B, P)
    allowed: torch.Tensor  # (B, P, P) bool, query i may see key j
    last_row: torch.Tensor  # (S,)
    last_column: torch.Tensor  # (S,)

    def to(self, device: torch.device) -> "_PackedBatch":
        return _PackedBatch(*(getattr(self, name).to(device) for name in self.__slots__))


def _pack(rows: Sequence[ScoringRow]) -> _PackedBatch:
    shape = (len(rows), max(row.packed_length for row in rows))
    input_ids, position_ids = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    segments = torch.full(shape, -1)  # -1 padding, 0 trajectory, t + 1 suffix t
    limits = torch.zeros(shape, dtype=torch.long)  # tokens of the trajectory that a query sees
    last: list[tuple[int, int]] = []
    for b, row in enumerate(rows):
        end = row.prefix_length
        input_ids[b, :end] = torch.tensor(row.token_ids[:end], dtype=torch.long)
        position_ids[b, :end] = torch.arange(end)
        segments[b, :end] = 0
        for step, (suffix, visible) in enumerate(zip(row.suffixes, row.visible, strict=True)):
            start, end = end, end + len(suffix)
            input_ids[b, start:end] = torch.tensor(suffix, dtype=torch.long)
            position_ids[b, start:end] = torch.arange(visible, visible + len(suffix))
            segments[b, start:end] = step + 1
            limits[b, start:end] = visible
            last.append((b, end - 1))
    column = torch.arange(shape[1])
    own = (segments[:, :, None] == segments[:, None, :]) & (column[:, None] >= column[None, :])
    prefix = (segments == 0)[:, None, :] & (column[None, None, :] < limits[:, :, None])
    # Padding is a segment of its own: it sees itself, so that no row of the softmax is empty (NaN).
    last_row, last_column = torch.tensor(last, dtype=torch.long).unbind(1)
    return _PackedBatch(input_ids, position_ids, own | prefix, last_row, last_column)


def _embedding_weight(model: nn.Module) -> torch.Tensor:
    """Where the ids go, and the precision in which the layers work (LoRA and quantised weights differ from it)."""
    return unwrap_causal_lm(model).get_input_embeddings().weight


def _mask_dtype(weight: torch.Tensor) -> torch.dtype:
    """An additive mask must have the dtype of the attention's queries."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
