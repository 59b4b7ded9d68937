"""Has a language model write its verdicts, and trains it on what it wrote: the evaluator's tokens as PPO actions."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .chat import PromptFormat
from .generation import Sampling, sample
from .heads import backbone_hidden
from .losses import kl_estimate
from .packing import plan_batches
from .token_batch import pad_rows
from .token_log_probs import token_log_probs
from .written import WrittenVerdict, parse_verdict


def write_verdicts(
    model: Any,
    contexts: Sequence[Sequence[int]],
    verdicts: Sequence[str],
    chat: PromptFormat,
    sampling: Sampling,
    max_tokens: int | None = None,
) -> list[WrittenVerdict]:
    """Samples one evaluation per context and reads its verdict; one that did not come to an end has none.

    Args:
        model (`PreTrainedModel`): the evaluator, in evaluation mode.
        contexts: tokens of what is in view, and of the question.
        verdicts: K words.
        chat: decodes.
        sampling: how; its temperature must not be 0 where the evaluator is trained on what it wrote.
        max_tokens (`int`, *optional*): most padded tokens of one pass for the log-probabilities.
    """
    written = []
    for context, own in zip(contexts, sample(model, contexts, sampling), strict=True):
        closed = bool(own) and own[-1] in chat.stop_token_ids
        text = chat.decode(own[:-1] if closed else own).strip()
        verdict = parse_verdict(text, verdicts) if closed else None
        written.append(WrittenVerdict((*context, *own), len(context), text, verdict))
    with torch.no_grad():
        log_probs = written_log_probs(model, written, sampling.temperature or 1.0, max_tokens=max_tokens)
    return [replace(w, log_probs=tuple(values.tolist())) for w, values in zip(written, log_probs, strict=True)]


def written_log_probs(
    model: nn.Module, written: Sequence[WrittenVerdict], temperature: float, *, max_tokens: int | None = None
) -> list[Tensor]:
    """Log-probabilities of the evaluator's own tokens, `(L - start,)` each; with a graph where one is recorded."""
    device = next(model.parameters()).device
    lengths = [len(w.token_ids) for w in written]
    parts = [list(range(len(written)))] if max_tokens is None else plan_batches(lengths, max_tokens)
    found: dict[int, Tensor] = {}
    for part in parts:
        if not part:
            continue
        batch = pad_rows([written[i].token_ids for i in part], device)
        hidden = backbone_hidden(model, batch.input_ids, batch.attention_mask, batch.position_ids)
        where = [(row, place) for row, i in enumerate(part) for place in range(written[i].start, lengths[i])]
        rows, places = torch.tensor(where, device=device).reshape(-1, 2).unbind(1)  # (N,) each
        flat, _ = token_log_probs(model, hidden[rows, places - 1], batch.input_ids[rows, places], temperature)
        found.update(zip(part, flat.split([lengths[i] - written[i].start for i in part]), strict=True))
    return [found[i] for i in range(len(written))]


def written_loss(
    policy: nn.Module,
    reference: AbstractContextManager[nn.Module],
    written: Sequence[WrittenVerdict],
    advantages: np.ndarray,
    *,
    temperature: float,
    cliprange: float,
    kl_coef: float,
    max_tokens: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7) on the evaluator's tokens, and a k3 KL to the reference.

    Every token of an evaluation has the evaluation's advantage, reason and verdict alike.

    Args:
        policy, reference: the evaluator, and what it is held near to.
        written (`Sequence[WrittenVerdict]`): M evaluations with the log-probabilities of when they were written.
        advantages (`np.ndarray`): `(M,)`.

    Returns:
        `tuple[Tensor, dict[str, float]]`: the loss, a mean over tokens, and `policy` and `kl` as numbers.
    """
    log_probs = torch.cat(written_log_probs(policy, written, temperature, max_tokens=max_tokens))  # (N,)
    old = torch.tensor([value for w in written for value in w.log_probs], dtype=log_probs.dtype).to(log_probs)
    counts = torch.tensor([len(w.log_probs) for w in written])
    advantage = torch.as_tensor(advantages, dtype=log_probs.dtype).repeat_interleave(counts).to(log_probs)
    with torch.no_grad(), reference as model:
        ref = torch.cat(written_log_probs(model, written, temperature, max_tokens=max_tokens))
    ratio = (log_probs - old).exp()
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    surrogate = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
    kl = kl_estimate(log_probs, ref, "k3").mean()
    return surrogate + kl_coef * kl, {"policy": float(surrogate.detach()), "kl": float(kl.detach())}
