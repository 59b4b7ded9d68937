"""A trained adapter put into its base's weights: one model that needs neither peft nor a quantised base."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ADAPTER_CONFIG = "adapter_config.json"


def merge_adapter(
    adapter: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    base_model: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | str = "auto",
    **model_kwargs: Any,
) -> Path:
    """Merges a LoRA adapter into the *unquantised* weights of its base and saves the model and its tokenizer.

    An adapter that was trained on a quantised base (QLoRA) learned beside rounded weights. Merging into the rounded
    weights and rounding again would lose part of what it learned; so the base is loaded anew, in full precision.

    Args:
        adapter (`str` or `PathLike`): a checkpoint's folder, or what `save_model` wrote: with `adapter_config.json`.
        output_dir (`str` or `PathLike`): where the model goes; must not hold one yet.
        base_model (`str` or `PathLike`, *optional*): by default the one that the adapter was trained on.
        dtype (`torch.dtype` or `str`): of the merged weights; by default the base's own.
        **model_kwargs: of `AutoModelForCausalLM.from_pretrained`, e.g. `device_map="auto"`.

    Returns:
        `Path`: `output_dir`.

    Raises:
        FileNotFoundError: `adapter` holds no adapter.
        FileExistsError: `output_dir` holds a model already.
        ValueError: the adapter does not say what its base is.
    """
    from peft import PeftModel

    adapter, output = Path(adapter), Path(output_dir)
    if not (adapter / ADAPTER_CONFIG).exists():
        raise FileNotFoundError(
            f"{adapter} has no {ADAPTER_CONFIG}, so there is no adapter to merge; name a checkpoint of a run with "
            "peft_config (without one the checkpoint is the whole model already)"
        )
    if (output / "config.json").exists():
        raise FileExistsError(f"{output} holds a model already; name another output_dir, or delete it first")
    known = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not (base_model or known):
        raise ValueError(f"{adapter / ADAPTER_CONFIG} does not name a base; pass base_model=")
    base = AutoModelForCausalLM.from_pretrained(str(base_model or known), dtype=dtype, **model_kwargs)
    if getattr(base, "is_quantized", False):
        raise ValueError(
            f"base_model={str(base_model or known)!r} is stored quantised, and merging would round the adapter away; "
            "pass the base_model that it was made from"
        )
    merged: Any = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    merged.save_pretrained(output)
    source = adapter if (adapter / "tokenizer_config.json").exists() else str(base_model or known)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)
    return output
