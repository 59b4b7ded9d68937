"""Verdict logits for every step of every trajectory, by the cheapest way that is right for the model's architecture.

A trajectory of L tokens is asked T questions of q tokens. `naive` runs T forwards over trajectory and question; the
packed ways run one forward over all of them, about `1 + T q / L` forwards of the trajectory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from .architectures import is_listed, mask_obstacle, repeat_obstacle
from .heads import backbone_of, embedding_weight, text_config
from .notices import warn_once
from .packing import ScoringRow, Verdicts
from .scorers import SCORERS, score_naive
from .verification import disagreement, tolerance

Resolved = Literal["cached_packed", "packed", "kv_repeat", "naive"]
Method = Literal["auto", "cached_packed", "packed", "kv_repeat", "naive"]
Verify = Literal["once", "never"]

DEFAULT_MAX_TOKENS = 16384


@dataclass(frozen=True, slots=True)
class VerdictLogits:
    """Logits of the verdicts after each suffix, in the order of the trajectories and of their suffixes.

    Args:
        logits (`torch.Tensor`): `(S, K)`, S = all suffixes, at least float32; up to a constant per row, the
            log-probabilities of the verdicts.
        row_index (`torch.Tensor`): `(S,)` index of the trajectory that a suffix belongs to.
        step_index (`torch.Tensor`): `(S,)` index of the suffix within its trajectory.
        method (`str`): `"cached_packed"`, `"packed"`, `"kv_repeat"` or `"naive"`.
    """

    logits: torch.Tensor
    row_index: torch.Tensor
    step_index: torch.Tensor
    method: str


def score_steps(
    model: nn.Module,
    trajectories: Sequence[Sequence[int]],
    suffixes: Sequence[Sequence[Sequence[int]]],
    verdict_ids: Sequence[int] | Sequence[Sequence[int]],
    *,
    visible: Sequence[Sequence[int]] | None = None,
    method: Method = "auto",
    requires_grad: bool = False,
    max_tokens: int | None = None,
    verify: Verify = "once",
) -> VerdictLogits:
    """Scores every question about every trajectory: logits of the K verdicts as what follows the question.

    Args:
        model (`nn.Module`): a `...ForCausalLM`, possibly in a PEFT wrapper; its train/eval mode is left as it is.
        trajectories (`Sequence[Sequence[int]]`): `(N, L_n)` token ids.
        suffixes (`Sequence[Sequence[Sequence[int]]]`): `(N, T_n, q)` token ids of the questions about each.
        verdict_ids (`Sequence[int]` or `Sequence[Sequence[int]]`): `(K,)` vocabulary ids of the verdicts, or
            `(K, m_k)` where a verdict has several tokens: its logit is then the sum of their log-probabilities.
        visible (`Sequence[Sequence[int]]`, *optional*): `(N, T_n)` question t sees the first `visible[n][t]` tokens
            of its trajectory and itself; all of them by default.
        method (`str`): `"cached_packed"` (one pass without gradient), `"packed"` (one pass, also with gradient),
            `"kv_repeat"` (one pass over the trajectory, one copy of its cache per question), `"naive"` (one forward
            per question). `"auto"` takes the first that is right for the model and its mode, and says once if that is
            not a one-pass method.
        requires_grad (`bool`): keep the graph (calibration).
        max_tokens (`int`, *optional*, defaults to 16384): padded tokens of one forward; a trajectory may exceed it.
        verify (`"once"` or `"never"`): compare a method with `"naive"` on random tokens, longer than the model's
            attention window, before its first use on this model. `"never"` trusts the table of architectures.

    Raises:
        ValueError: a trajectory, question or verdict that cannot be scored, or a method that would be silently wrong
            for this model or mode.
    """
    rows = _rows(trajectories, suffixes, visible)
    return score_rows(
        model, rows, verdict_ids, method=method, requires_grad=requires_grad, max_tokens=max_tokens, verify=verify
    )


def score_rows(
    model: nn.Module,
    rows: Sequence[ScoringRow],
    verdict_ids: Sequence[int] | Sequence[Sequence[int]],
    *,
    method: Method = "auto",
    requires_grad: bool = False,
    max_tokens: int | None = None,
    verify: Verify = "once",
) -> VerdictLogits:
    """[`score_steps`] on bundled rows."""
    verdicts = Verdicts.of(verdict_ids)
    check_rows(text_config(model), rows, verdicts)
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}; leave it None for {DEFAULT_MAX_TOKENS}")
    resolved = resolve_method(model, method, requires_grad=requires_grad, verify=verify)
    limit = max_tokens or DEFAULT_MAX_TOKENS
    with torch.set_grad_enabled(requires_grad):
        if not rows:
            per_row = [torch.zeros(0, len(verdicts.token_ids), device=embedding_weight(model).device)]
        elif resolved == "naive":
            per_row = score_naive(model, rows, verdicts)
        else:
            per_row = SCORERS[resolved](model, rows, verdicts, limit)
    counts = [len(row.suffixes) for row in rows]
    return VerdictLogits(
        logits=torch.cat(per_row),
        row_index=torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts, dtype=torch.long)),
        step_index=torch.tensor([step for count in counts for step in range(count)], dtype=torch.long),
        method=resolved,
    )


def resolve_method(
    model: nn.Module, method: Method = "auto", *, requires_grad: bool = False, verify: Verify = "once"
) -> Resolved:
    """The scorer that `method` means for this model in its present mode; see [`score_steps`]."""
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}")
    if verify not in get_args(Verify):
        raise ValueError(f"verify must be one of {get_args(Verify)}, got {verify!r}")
    if method == "naive":
        return "naive"
    if method != "auto":
        obstacle = method_obstacle(model, method, requires_grad=requires_grad, verify=verify)
        if obstacle is not None:
            raise ValueError(f"method={method!r} would be silently wrong here: {obstacle}; use method='auto'")
        return method
    reasons: list[str] = []
    for candidate in _candidates(requires_grad):
        obstacle = method_obstacle(model, candidate, requires_grad=requires_grad, verify=verify)
        if obstacle is None:
            if candidate == "kv_repeat":
                warn_once(f"hindsight scoring copies the cache for every question: {reasons[0]}")
            return candidate
        reasons.append(obstacle)
    warn_once(f"hindsight scoring falls back to one forward per step (slow): {reasons[0]}")
    return "naive"


def _candidates(requires_grad: bool) -> tuple[Literal["cached_packed", "packed", "kv_repeat"], ...]:
    return ("packed",) if requires_grad else ("cached_packed", "packed", "kv_repeat")


def method_obstacle(
    model: nn.Module,
    method: Literal["cached_packed", "packed", "kv_repeat"],
    *,
    requires_grad: bool = False,
    verify: Verify = "once",
) -> str | None:
    """Why this method would be wrong for this model in its present mode, `None` if it is right."""
    obstacle = repeat_obstacle(model) if method == "kv_repeat" else mask_obstacle(model)
    if obstacle is not None:
        return obstacle
    if method != "packed" and _loses_its_cache(model):
        return "gradient checkpointing in training mode drops the cache; call model.eval() or disable it"
    if method == "kv_repeat" and requires_grad:
        return "a gradient does not pass through the copies of the cache"
    if verify == "never":
        if not is_listed(model):
            return (
                f"model type {text_config(model).model_type!r} is not in the table, and verify='never' trusts only it"
            )
        return None
    measured = disagreement(model, method)
    if isinstance(measured, str):
        return f"{method} scoring failed on this model ({measured})"
    if measured > tolerance(model):
        return (
            f"{method} scoring differs from naive scoring by {measured:.1e} of the logits' spread on this model "
            f"(tolerated: {tolerance(model):.0e})"
        )
    return None


def _loses_its_cache(model: nn.Module) -> bool:
    return any(getattr(m, "gradient_checkpointing", False) and m.training for m in backbone_of(model).modules())


def _rows(
    trajectories: Sequence[Sequence[int]],
    suffixes: Sequence[Sequence[Sequence[int]]],
    visible: Sequence[Sequence[int]] | None,
) -> list[ScoringRow]:
    if visible is None:
        visible = [[len(tokens)] * len(asked) for tokens, asked in zip(trajectories, suffixes, strict=False)]
    if not len(trajectories) == len(suffixes) == len(visible):
        raise ValueError(
            f"{len(trajectories)} trajectories, but suffixes for {len(suffixes)} and visible for {len(visible)} of "
            "them; give one list for each trajectory"
        )
    return [ScoringRow(*row) for row in zip(trajectories, suffixes, visible, strict=True)]


def check_rows(config: Any, rows: Sequence[ScoringRow], verdicts: Verdicts) -> None:
    """Raises a `ValueError` that names the first trajectory, question or verdict that cannot be scored."""
    ids = [token for tokens in verdicts.token_ids for token in tokens]
    if not ids or not all(0 <= index < config.vocab_size for index in ids):
        raise ValueError(
            f"verdict_ids must be ids in [0, {config.vocab_size}), the model's vocabulary, got {verdicts.token_ids!r}"
        )
    longest_verdict = max(len(branch) for branch in verdicts.branches)
    max_positions = getattr(config, "max_position_embeddings", None)
    for index, row in enumerate(rows):
        _check_row(index, row, None if max_positions is None else max_positions - longest_verdict)


def _check_row(index: int, row: ScoringRow, max_positions: int | None) -> None:
    length = len(row.token_ids)
    if length == 0:
        raise ValueError(f"trajectories[{index}] is empty; a question needs something to be about")
    if not row.suffixes:
        raise ValueError(f"suffixes[{index}] holds no question (T = 0); leave trajectories without steps out")
    if len(row.visible) != len(row.suffixes):
        raise ValueError(
            f"visible[{index}] has {len(row.visible)} values for {len(row.suffixes)} suffixes; give one for each"
        )
    for step, (suffix, visible) in enumerate(zip(row.suffixes, row.visible, strict=True)):
        if not len(suffix):
            raise ValueError(f"suffixes[{index}][{step}] is empty; a verdict is read after its last token")
        if not 1 <= visible <= length:
            raise ValueError(
                f"visible[{index}][{step}] must be in [1, {length}] (the trajectory's length), got {visible}"
            )
        if max_positions is not None and visible + len(suffix) > max_positions:
            raise ValueError(
                f"trajectories[{index}]: {visible} tokens plus {len(suffix)} of suffixes[{index}][{step}] exceed the "
                f"model's {max_positions} positions (max_position_embeddings); shorten the episodes or the question"
            )
