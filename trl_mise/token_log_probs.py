"""Log-probabilities and entropies of gathered tokens, never with more of their `(N, V)` logits than a bound allows."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .heads import lm_logits, output_head, text_config

DEFAULT_HEAD_BYTES = 64 * 2**20
"""Measured: as fast as larger chunks, and small beside the activations of a micro-batch."""


def token_log_probs(
    model: nn.Module,
    hidden: Tensor,
    token_ids: Tensor,
    temperature: float,
    *,
    max_bytes: int = DEFAULT_HEAD_BYTES,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens under the tempered policy, and the entropies of what they were drawn from.

    The head is applied to chunks of the tokens. Where there are several and a gradient is asked for, no chunk's logits
    wait for the backward pass: they are computed again there, or, if the head is frozen, used up in the forward pass.

    Args:
        model (`nn.Module`): a `...ForCausalLM`, possibly in a PEFT wrapper.
        hidden (`Tensor`): `(N, H)` states before the tokens, gathered from [`backbone_hidden`].
        token_ids (`Tensor`): `(N,)`.
        temperature (`float`): of the sampling.
        max_bytes (`int`): most bytes of one chunk's logits in their precision (float32, or float64); a chunk has at
            least one token.

    Returns:
        `tuple[Tensor, Tensor]`: log-probabilities `(N,)`, and entropies `(N,)` in nats without a gradient.
    """
    head = output_head(model)
    count = _num_chunks(model, head, hidden, max_bytes)
    chunks = list(zip(hidden.chunk(count), token_ids.chunk(count), strict=True))
    trains_head = any(parameter.requires_grad for parameter in head.parameters())
    if len(chunks) == 1 or not torch.is_grad_enabled() or not (trains_head or hidden.requires_grad):
        return _concatenate([_chunk_log_probs(states, model, ids, temperature) for states, ids in chunks])
    if not trains_head:
        return _frozen_head_log_probs(model, hidden, chunks, temperature)
    # An adapter on the head may have dropout, which must drop the same again.
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": type(head) is not nn.Linear}
    return _concatenate(
        [checkpoint(_chunk_log_probs, states, model, ids, temperature, **options) for states, ids in chunks]
    )


def _num_chunks(model: nn.Module, head: nn.Module, hidden: Tensor, max_bytes: int) -> int:
    """Chunks of nearly equal size; depends on nothing but shapes, so that every pass over a micro-batch agrees."""
    element = max(4, hidden.element_size(), *(parameter.element_size() for parameter in head.parameters()))
    tokens = max(1, max_bytes // (text_config(model).vocab_size * element))
    return max(1, math.ceil(len(hidden) / tokens))


def _concatenate(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    log_probs, entropies = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(entropies)


def _chunk_log_probs(hidden: Tensor, model: nn.Module, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`(n, H)` -> `(n,)` twice."""
    return _TokenLogProbs.apply(lm_logits(model, hidden), token_ids, temperature + 1e-7)


class _TokenLogProbs(torch.autograd.Function):
    """`log_softmax` of tempered logits `(n, V)` at one token each `(n,)`, and its entropy `(n,)`.

    One exponential, of which alone the backward pass is made; torch's own operations need three more `(n, V)`.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        shifted = logits / temperature
        shifted -= shifted.amax(-1, keepdim=True)
        chosen = shifted.gather(1, token_ids[:, None])
        weights = shifted.exp()
        total = weights.sum(-1, keepdim=True)
        # H = log Z - E[shifted], a sum of two numbers >= 0.
        entropy = total.log() - shifted.mul_(weights).sum(-1, keepdim=True) / total
        ctx.save_for_backward(weights, total, token_ids)
        ctx.temperature = temperature
        entropy = entropy.squeeze(1)
        ctx.mark_non_differentiable(entropy)
        return (chosen - total.log()).squeeze(1), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        """`d log p(i) / d logit(j) = ([i = j] - p(j)) / temperature`."""
        weights, total, token_ids = ctx.saved_tensors
        gradient = gradient[:, None] / ctx.temperature
        return (weights * (-gradient / total)).scatter_add_(1, token_ids[:, None], gradient), None, None


def _frozen_head_log_probs(
    model: nn.Module, hidden: Tensor, chunks: Sequence[tuple[Tensor, Tensor]], temperature: float
) -> tuple[Tensor, Tensor]:
    """With a frozen head a token's log-probability depends on its own state only.

    Its gradient is then `(N, H)` numbers that the forward pass can leave behind, in place of logits.
    """
    parts, slopes = [], []
    for states, ids in chunks:
        states = states.detach().requires_grad_()
        log_probs, entropy = _chunk_log_probs(states, model, ids, temperature)
        slopes.append(torch.autograd.grad(log_probs.sum(), states)[0])
        parts.append((log_probs.detach(), entropy))
    log_probs, entropy = _concatenate(parts)
    return _WithSlopes.apply(hidden, log_probs, torch.cat(slopes)), entropy


class _WithSlopes(torch.autograd.Function):
    """`values` `(N,)`, whose derivatives by their own rows of `hidden` `(N, H)` are `slopes` `(N, H)`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (gradient[:, None] * slopes).to(slopes.dtype), None, None
