"""The two halves of a causal language model: the backbone's hidden states, and logits where they are needed.

A model's own `forward` builds `(B, L, V)` logits. Scoring and PPO need a few positions and a few words of them, so the
backbone is run alone and the head is applied to what was gathered. The head is more than its matrix in some families
(soft caps, scales); those are applied again here.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

# Factors that a family's `forward` multiplies its logits with: (model type prefix, attribute of the text config).
# They go by family because the same name means something else elsewhere: granite *divides* by `logits_scaling`, and
# mpt has a `logit_scale` that its forward never reads.
_LOGIT_FACTORS = (("cohere", "logit_scale"), ("hyperclovax", "logits_scaling"), ("falcon_h1", "lm_head_multiplier"))


def unwrap_causal_lm(model: nn.Module) -> Any:
    """The causal language model inside a PEFT wrapper (its adapters stay active), or `model` itself.

    Raises:
        ValueError: the adapter is a learned prompt, which lives in the wrapper and would be lost.
    """
    if not hasattr(model, "get_base_model"):
        return model
    adapter: Any = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise ValueError(
            f"model has a prompt learning adapter (peft_type {adapter.peft_type}), whose virtual tokens are lost when "
            "the backbone is run without its wrapper; use an adapter inside the layers, e.g. peft.LoraConfig"
        )
    return cast(Any, model).get_base_model()


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model part, also for models that have other parts."""
    return unwrap_causal_lm(model).config.get_text_config()


def context_limit(model: nn.Module, at_most: int) -> int:
    """`at_most`, or the model's `max_position_embeddings` where that is less; not every family has it."""
    return min(at_most, getattr(text_config(model), "max_position_embeddings", None) or at_most)


def backbone_hidden(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
    position_ids: torch.Tensor | None = None,
    *,
    cache: Any = None,
) -> torch.Tensor:
    """Last hidden states (after the final norm) of a causal language model, without building logits.

    Args:
        model (`nn.Module`): a `...ForCausalLM`, possibly in a PEFT wrapper.
        input_ids (`torch.Tensor`): `(B, L)`.
        attention_mask (`torch.Tensor`, *optional*): `(B, L)`, or `(B, 1, L, C)` additive, or one of these per layer
            type.
        position_ids (`torch.Tensor`, *optional*): `(B, L)`; ignored by families that count for themselves (ALiBi).
        cache (`transformers.Cache`, *optional*): what was read before; filled in place.

    Returns:
        `torch.Tensor`: `(B, L, H)`.
    """
    backbone = backbone_of(model)
    names = _parameters(type(backbone).forward)
    inputs = {"attention_mask": attention_mask, "position_ids": position_ids if "position_ids" in names else None}
    # transformers renamed the argument in 5.24; Mamba-like families have a third name.
    inputs[next((name for name in ("cache", "past_key_values", "cache_params") if name in names), "cache")] = cache
    given = {name: value for name, value in inputs.items() if value is not None}
    return backbone(input_ids=input_ids, use_cache=cache is not None, return_dict=True, **given).last_hidden_state


def backbone_of(model: nn.Module) -> Any:
    """The causal language model without its head."""
    causal_lm = unwrap_causal_lm(model)
    backbone = getattr(causal_lm, causal_lm.base_model_prefix, None)
    if backbone is None:
        raise ValueError(
            f"model {type(causal_lm).__name__} has no backbone under its base_model_prefix "
            f"{causal_lm.base_model_prefix!r}; pass a transformers ...ForCausalLM model"
        )
    return backbone


def accepts(module: nn.Module, name: str) -> bool:
    """Whether the module's `forward` names this argument."""
    return name in _parameters(type(module).forward)


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def embedding_weight(model: nn.Module) -> torch.Tensor:
    """Where the ids go, and the precision in which the layers work (LoRA and quantised weights differ from it)."""
    return unwrap_causal_lm(model).get_input_embeddings().weight


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The module in evaluation mode (no LoRA dropout, no checkpointing), and every part back as it was."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def output_head(model: nn.Module) -> nn.Module:
    """The module that makes logits of hidden states, with the adapters that are on it.

    Raises:
        ValueError: the model has none.
    """
    head = unwrap_causal_lm(model).get_output_embeddings()
    if head is None:
        raise ValueError(f"model {type(model).__name__} has no output embeddings; pass a ...ForCausalLM model")
    return cast(nn.Module, head)


def lm_logits(model: nn.Module, hidden: torch.Tensor, *, token_ids: Sequence[int] | None = None) -> torch.Tensor:
    """Next-token logits of gathered hidden states, as the model's own `forward` would give them.

    Args:
        model (`nn.Module`): a `...ForCausalLM`, possibly in a PEFT wrapper.
        hidden (`torch.Tensor`): `(..., H)`, from [`backbone_hidden`].
        token_ids (`Sequence[int]`, *optional*): K words of the vocabulary; all V by default.

    Returns:
        `torch.Tensor`: `(..., V)` or `(..., K)`, at least float32.
    """
    head = output_head(model)
    if token_ids is None:
        logits = head(hidden.to(_weight_dtype(head, hidden)))
    else:
        logits = _restricted_head(head, hidden, torch.as_tensor(token_ids, dtype=torch.long, device=hidden.device))
    logits = _scale_logits(text_config(model), logits)
    return logits if logits.dtype == torch.float64 else logits.float()


def _restricted_head(head: nn.Module, hidden: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    # Only a plain matrix that is really there may be indexed: not quantised weights, an adapter on the head, a head
    # that accelerate loads when called (`_hf_hook`), or a ZeRO-3 shard (empty).
    if type(head) is not nn.Linear or hasattr(head, "_hf_hook") or head.weight.numel() == 0:
        return head(hidden.to(_weight_dtype(head, hidden))).index_select(-1, token_ids)
    bias = None if head.bias is None else head.bias[token_ids]
    return nn.functional.linear(hidden.to(head.weight.dtype), head.weight[token_ids], bias)


def _weight_dtype(head: nn.Module, hidden: torch.Tensor) -> torch.dtype:
    """A plain head may be kept in another precision than the hidden states; other heads see to it themselves."""
    return head.weight.dtype if type(head) is nn.Linear else hidden.dtype


def _scale_logits(config: Any, logits: torch.Tensor) -> torch.Tensor:
    """Applies what the family's `forward` does after the matrix: scale first, then the soft cap."""
    scaling = getattr(config, "logits_scaling", None)
    if scaling is not None and not config.model_type.startswith("hyperclovax"):
        logits = logits / scaling
    for family, name in _LOGIT_FACTORS:
        factor = getattr(config, name, None)
        if config.model_type.startswith(family) and factor is not None:
            logits = logits * factor
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def keep_four_bit_layout(model: nn.Module) -> None:
    """Lets bitsandbytes leave 4-bit weights as they are on a CPU.

    Where the processor has AVX512-BF16 it lays them out anew at the first pass in evaluation mode, in place and for
    another arithmetic: the rollout's log-probabilities would be computed otherwise than those of the update.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
