"""Calibrated hindsight self-evaluation (MISE) on top of TRL.

The public names are looked up on first use (PEP 562): `import trl_mise` loads neither torch, transformers nor TRL, so
that environments and records can be used, and worker processes started, without them.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_mise.backends import GenerationBackend
    from trl_mise.callback import CalibrationCallback
    from trl_mise.chat import ChatFormat
    from trl_mise.checkpoints import CheckpointError
    from trl_mise.config import MISEConfig
    from trl_mise.envs.base import EnvironmentFailure, TextEnv
    from trl_mise.envs.check import check_env
    from trl_mise.export import merge_adapter
    from trl_mise.grpo import MISEGRPOTrainer
    from trl_mise.grpo_config import MISEGRPOConfig
    from trl_mise.health import HindsightHealthWarning
    from trl_mise.hindsight import EvaluatorFailure, HindsightReward
    from trl_mise.ppo import PPOConfig
    from trl_mise.trainer import MISETrainer, NonFiniteUpdate
    from trl_mise.types import HindsightScores, StopReason, Trajectory, Turn

__all__ = [
    "CalibrationCallback",
    "ChatFormat",
    "CheckpointError",
    "EnvironmentFailure",
    "EvaluatorFailure",
    "GenerationBackend",
    "HindsightHealthWarning",
    "HindsightReward",
    "HindsightScores",
    "MISEConfig",
    "MISEGRPOConfig",
    "MISEGRPOTrainer",
    "MISETrainer",
    "NonFiniteUpdate",
    "PPOConfig",
    "StopReason",
    "TextEnv",
    "Trajectory",
    "Turn",
    "__version__",
    "check_env",
    "merge_adapter",
]

# name -> the module that defines it. Type checkers cannot read it, hence the imports above; a test compares the two.
_MODULE_OF = {
    "CalibrationCallback": "trl_mise.callback",
    "ChatFormat": "trl_mise.chat",
    "CheckpointError": "trl_mise.checkpoints",
    "EnvironmentFailure": "trl_mise.envs.base",
    "EvaluatorFailure": "trl_mise.hindsight",
    "GenerationBackend": "trl_mise.backends",
    "HindsightHealthWarning": "trl_mise.health",
    "HindsightReward": "trl_mise.hindsight",
    "HindsightScores": "trl_mise.types",
    "MISEConfig": "trl_mise.config",
    "MISEGRPOConfig": "trl_mise.grpo_config",
    "MISEGRPOTrainer": "trl_mise.grpo",
    "MISETrainer": "trl_mise.trainer",
    "NonFiniteUpdate": "trl_mise.trainer",
    "PPOConfig": "trl_mise.ppo",
    "StopReason": "trl_mise.types",
    "TextEnv": "trl_mise.envs.base",
    "Trajectory": "trl_mise.types",
    "Turn": "trl_mise.types",
    "check_env": "trl_mise.envs.check",
    "merge_adapter": "trl_mise.export",
}

try:
    __version__ = version("trl-mise")
except PackageNotFoundError:  # run from a checkout that was never installed; pyproject.toml alone names the version
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'trl_mise' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
