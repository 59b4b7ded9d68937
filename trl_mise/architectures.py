"""What an architecture's attention lets us do: one mask for all layers, one per layer type, a cache, or neither.

The table names the families that were compared with the naive scorer. A family that it does not name may still be
tried where its configuration lists the types of its layers: [`score_steps`] verifies once, against the naive way.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .heads import embedding_weight, text_config, unwrap_causal_lm

# Families with softmax attention whose masks may be given and whose positions come from `position_ids` alone.
MASKED_FAMILIES = frozenset(
    {
        "apertus",
        "arcee",
        "cohere",
        "cohere2",
        "deepseek_v2",
        "deepseek_v3",
        "ernie4_5",
        "gemma",
        "gemma2",
        "gemma3_text",
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
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
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
# Position biases that follow the mask's columns (ALiBi), and attention mixed with recurrent layers: no mask can pack
# these, but a cache can be copied.
REPEATED_FAMILIES = frozenset(
    {
        "bamba",
        "bloom",
        "falcon",
        "falcon_h1",
        "granitemoehybrid",
        "lfm2",
        "lfm2_moe",
        "mpt",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_next",
    }
)
# Without a cache of keys and values, or with one that cannot be continued by several tokens.
NAIVE_FAMILIES = frozenset(
    {"falcon_mamba", "jamba", "mamba", "mamba2", "minimax", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2"}
)
MASKED_LAYERS = frozenset({"full_attention", "sliding_attention"})
# Attention implementations that take an additive 4D mask.
MASKED_ATTENTION = ("sdpa", "eager")
# Rotary embeddings whose frequencies depend on the longest position in the batch: one row would change another.
_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


def mask_obstacle(model: nn.Module) -> str | None:
    """Why the attention of this model cannot be given masks of our own with restarted positions; `None` if it can."""
    config = text_config(model)
    kind, layer_types = config.model_type, _layer_types(config)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    attention = attention_implementation(model)
    if kind not in MASKED_FAMILIES and (not layer_types or kind in REPEATED_FAMILIES | NAIVE_FAMILIES):
        return f"model type {kind!r} is not known to have plain attention in every layer"
    if layer_types - MASKED_LAYERS:
        return f"model type {kind!r} has layers of type {sorted(layer_types - MASKED_LAYERS)}"
    if "sliding_attention" in layer_types and attention_window(config) is None:
        return f"model type {kind!r} has sliding layers but no config.sliding_window"
    if rope.get("rope_type") in _BATCH_DEPENDENT_ROPE:
        return f"the rotary embedding {rope['rope_type']!r} depends on the other rows of the batch"
    if attention not in MASKED_ATTENTION and not _takes_sdpa(model):
        return f"attention implementation {attention!r} takes no 4D mask; load with attn_implementation='sdpa'"
    return None


def repeat_obstacle(model: nn.Module) -> str | None:
    """Why the cache of this model cannot be copied and continued by several tokens; `None` if it can."""
    kind = text_config(model).model_type
    if kind in NAIVE_FAMILIES:
        return f"the cache of model type {kind!r} cannot be continued by several tokens"
    if kind in MASKED_FAMILIES | REPEATED_FAMILIES or _layer_types(text_config(model)):
        return None
    return f"model type {kind!r} is not known to have a cache that can be copied"


def is_listed(model: nn.Module) -> bool:
    """Whether the table names the model's family; others may be used only after they were verified."""
    return text_config(model).model_type in MASKED_FAMILIES | REPEATED_FAMILIES | NAIVE_FAMILIES


def attention_implementation(model: nn.Module) -> str | None:
    return getattr(unwrap_causal_lm(model).config, "_attn_implementation", None)


def attention_window(config: Any) -> int | None:
    """Tokens that a sliding layer looks back on (itself included), `None` where no layer slides."""
    window = getattr(config, "sliding_window", None)
    layer_types = _layer_types(config)
    return None if layer_types and "sliding_attention" not in layer_types else window


def attention_masks(
    model: nn.Module, allowed: Tensor, query_position: Tensor, key_position: Tensor
) -> Tensor | Mapping[str, Tensor]:
    """What the model's `forward` takes as `attention_mask` so that query i sees key j exactly where `allowed`.

    Sliding layers additionally see only keys less than their window away, by position: a 4D mask replaces the
    model's own, window included.

    Args:
        allowed (`Tensor`): `(B, Q, C)` bool; every query must see at least one key.
        query_position (`Tensor`): `(B, Q)`.
        key_position (`Tensor`): `(B, C)`.

    Returns:
        `Tensor` or `Mapping[str, Tensor]`: additive `(B, 1, Q, C)`, per layer type where layers differ.
    """
    config = text_config(model)
    dtype = _mask_dtype(embedding_weight(model))
    window, layer_types = attention_window(config), _layer_types(config)
    if window is None:
        return _additive(allowed, dtype)
    near = query_position[:, :, None] - key_position[:, None, :] < window
    windowed = _additive(allowed & near, dtype)
    return {"full_attention": _additive(allowed, dtype), "sliding_attention": windowed} if layer_types else windowed


@contextmanager
def masked_attention(model: nn.Module) -> Iterator[None]:
    """The model with an attention implementation that takes 4D masks: its own, or sdpa for the time being."""
    own = attention_implementation(model)
    if own in MASKED_ATTENTION:
        yield
        return
    configs = {id(config): config for config in (unwrap_causal_lm(model).config, text_config(model))}.values()
    for config in configs:
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        for config in configs:
            config._attn_implementation = own


def _layer_types(config: Any) -> frozenset[str]:
    return frozenset(getattr(config, "layer_types", None) or ())


def _takes_sdpa(model: nn.Module) -> bool:
    return bool(getattr(unwrap_causal_lm(model), "_supports_sdpa", False))


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    # Eager attention adds the mask: True and False would be 1 and 0.
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def _mask_dtype(weight: Tensor) -> torch.dtype:
    """An additive mask must have the dtype of the attention's queries."""
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    # 8-bit and 4-bit bases keep their embeddings in floating point.
    return weight.dtype
