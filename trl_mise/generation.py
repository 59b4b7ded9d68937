"""Sampling with transformers' `generate`: neutral, so that what is sampled is what the losses believe."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from .token_batch import pad_rows


@dataclass(frozen=True)
class Sampling:
    """How actions are sampled.

    Args:
        temperature (`float`): 0 means greedy.
        max_new_tokens (`int`): per action.
        stop_token_ids (`tuple[int, ...]`): sampling of a row ends with the first of these.
        batch_size (`int`): rows that go through the model together.
    """

    temperature: float
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    batch_size: int = 64


def neutral_generation_config(sampling: Sampling, pad_token_id: int) -> GenerationConfig:
    """Plain sampling at a temperature (or greedy), with nothing that would bend the distribution."""
    greedy = sampling.temperature == 0
    choice = {"do_sample": False} if greedy else {"do_sample": True, "temperature": sampling.temperature, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=list(sampling.stop_token_ids) or None,
        pad_token_id=pad_token_id,
        use_cache=True,
        **choice,
    )


@contextmanager
def without_own_generation_config(model: Any) -> Iterator[None]:
    """Hides the model's generation config: `generate` fills options left unset (top_p, repetition_penalty) from it."""
    candidates = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    # A PEFT wrapper shows its base model's config; it must not be left with one of its own.
    owners = [owner for owner in candidates if "generation_config" in vars(owner)]
    saved = [owner.generation_config for owner in owners]
    for owner in owners:
        owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for owner, config in zip(owners, saved, strict=True):
            owner.generation_config = config


@torch.no_grad()
def sample(
    model: Any, contexts: Sequence[Sequence[int]], sampling: Sampling, pad_token_id: int = 0
) -> list[list[int]]:
    """Samples one continuation per context with `generate`, which reads every context from its beginning.

    Args:
        model (`PreTrainedModel`): causal language model, possibly in a PEFT wrapper.
        contexts (`Sequence[Sequence[int]]`): token ids.
        sampling ([`Sampling`]): how.
        pad_token_id (`int`): fills up the batch; any id will do, masks and ends are known without it.

    Returns:
        `list[list[int]]`: sampled ids, the stop token included where one was sampled. A row ends at its *first* stop
        token, which is where sampling stopped: what follows is padding, whatever the pad token's id.
    """
    config = neutral_generation_config(sampling, pad_token_id)
    device = next(model.parameters()).device
    rows: list[list[int]] = []
    with without_own_generation_config(model):
        for start in range(0, len(contexts), sampling.batch_size):
            batch = pad_rows(contexts[start : start + sampling.batch_size], device, left=True, pad_id=pad_token_id)
            output = model.generate(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=config
            )
            rows.extend(until_stop(row, sampling) for row in output[:, batch.input_ids.shape[1] :].tolist())
    return rows


def until_stop(row: Sequence[int], sampling: Sampling) -> list[int]:
    """The row up to its first stop token, which belongs to it."""
    end = next((i + 1 for i, token in enumerate(row) if token in sampling.stop_token_ids), len(row))
    return list(row[:end])
