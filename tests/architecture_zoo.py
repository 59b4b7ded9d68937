"""Tiny random models of every family in the table of architectures."""

import torch
from transformers import (
    BambaConfig,
    BloomConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB = 61
WINDOW = 8
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
SSM = {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
}
SMALL = {"vocab_size": VOCAB, "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = {
    "qwen2": lambda: Qwen2Config(**BASE),
    "llama": lambda: LlamaConfig(**BASE),
    "qwen3": lambda: Qwen3Config(**BASE, head_dim=8),
    "gemma2": lambda: Gemma2Config(**BASE, **MIXED, head_dim=8, final_logit_softcapping=1.5),
    "gemma3": lambda: Gemma3TextConfig(**BASE, **MIXED, head_dim=8),
    "mistral": lambda: MistralConfig(**BASE, sliding_window=WINDOW),
    "qwen2_window": lambda: Qwen2Config(**BASE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
    "mixtral": lambda: MixtralConfig(**BASE, num_local_experts=4),
    "qwen3_moe": lambda: Qwen3MoeConfig(**BASE, **MOE, head_dim=8),
    "gpt2": lambda: GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "bloom": lambda: BloomConfig(**SMALL, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda: MptConfig(**SMALL, d_model=32, n_layers=2, n_heads=4),
    "lfm2": lambda: Lfm2Config(**BASE, layer_types=["conv", "full_attention"] * 2),
    "qwen3_next": lambda: Qwen3NextConfig(**BASE, **MOE, **LINEAR, head_dim=8),
    "falcon_h1": lambda: FalconH1Config(**BASE, **SSM, mamba_d_ssm=32, mamba_n_heads=4),
    "bamba": lambda: BambaConfig(**BASE, **SSM, attn_layer_indices=[1, 3], mamba_n_heads=8),
    "mamba": lambda: MambaConfig(**SMALL, hidden_size=16, num_hidden_layers=2, state_size=4),
}
ONE_PASS = ["qwen2", "llama", "qwen3", "gemma2", "gemma3", "mistral", "qwen2_window", "mixtral", "qwen3_moe", "gpt2"]
REPEATED = ["bloom", "mpt", "lfm2", "qwen3_next", "falcon_h1", "bamba"]
EAGER_ONLY = ["gemma2", "bloom", "mpt", "mamba"]


def build(config: PreTrainedConfig, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()
