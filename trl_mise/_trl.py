"""The only file that imports TRL."""

import importlib
import os
from importlib.metadata import version
from typing import Any, NamedTuple

from packaging.version import Version

SUPPORTED = ">=1.0"


def check_trl_version(installed: str) -> None:
    """Raises an `ImportError` that says what to install if this TRL is too old."""
    if Version(Version(installed).base_version) < Version("1.0"):
        raise ImportError(
            f'trl {installed} is installed, but trl-mise needs trl{SUPPORTED}; run: pip install "trl{SUPPORTED}"'
        )


check_trl_version(version("trl"))

TRLPPOConfig: Any = None
TRLPPOTrainer: Any = None
# TRL warns about every import of its experimental namespace; using it is this file's purpose.
_silenced = os.environ.get("TRL_EXPERIMENTAL_SILENCE")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
try:
    from trl import TrlParser
    from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation

    try:
        _ppo = importlib.import_module("trl.experimental.ppo")
        TRLPPOConfig, TRLPPOTrainer = _ppo.PPOConfig, _ppo.PPOTrainer
    except ModuleNotFoundError as error:
        # TRL removed it in 1.13; that something which it needs is missing is another matter.
        if error.name != "trl.experimental.ppo":
            raise
finally:
    if _silenced is None:
        del os.environ["TRL_EXPERIMENTAL_SILENCE"]
    else:
        os.environ["TRL_EXPERIMENTAL_SILENCE"] = _silenced


def grpo_classes() -> tuple[Any, Any]:
    """TRL's `GRPOConfig` and `GRPOTrainer`; apart, because they load much that PPO does not need."""
    trl = importlib.import_module("trl")
    return trl.GRPOConfig, trl.GRPOTrainer


class ModelArguments(NamedTuple):
    """What TRL's own scripts load models with."""

    config_class: Any
    get_peft_config: Any
    get_quantization_config: Any


def model_arguments() -> ModelArguments:
    """TRL's `ModelConfig`, and what makes adapter and quantisation of it."""
    trl = importlib.import_module("trl")
    return ModelArguments(trl.ModelConfig, trl.get_peft_config, trl.get_quantization_config)


def vllm_classes() -> tuple[Any, Any]:
    """TRL's `VLLMGeneration`, which carries weights to a vLLM server, and `VLLMClient`, which asks it.

    Raises:
        ImportError: vLLM is not installed; says how to do it.
    """
    if not importlib.import_module("trl.import_utils").is_vllm_available():
        raise ImportError(
            "generation_backend='vllm' needs vLLM on the machine of the trainer too (for the transfer of weights): "
            'pip install "trl[vllm]", or use generation_backend="transformers"'
        )
    generation = importlib.import_module("trl.generation.vllm_generation")
    return generation.VLLMGeneration, importlib.import_module("trl.generation.vllm_client").VLLMClient


__all__ = [
    "SUPPORTED",
    "TRLPPOConfig",
    "TRLPPOTrainer",
    "TrlParser",
    "check_trl_version",
    "grpo_classes",
    "model_arguments",
    "prepare_deepspeed",
    "unwrap_model_for_generation",
    "vllm_classes",
]
