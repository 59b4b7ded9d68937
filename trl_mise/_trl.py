"""The only file that imports TRL."""

import os
from importlib.metadata import version

from packaging.version import Version

SUPPORTED = ">=1.0,<1.13"
"""TRL removed `trl.experimental.ppo` in 1.13."""


def check_trl_version(installed: str) -> None:
    """Raises an `ImportError` that says what to install if this TRL has no `PPOTrainer`."""
    if not Version("1.0") <= Version(Version(installed).base_version) < Version("1.13"):
        raise ImportError(
            f"trl {installed} is installed, but this version of trl-mise extends TRL's PPOTrainer, which exists in "
            f'trl{SUPPORTED} only; run: pip install "trl{SUPPORTED}"'
        )


check_trl_version(version("trl"))

# TRL warns about every import of its experimental namespace; using it is this file's purpose.
_silenced = os.environ.get("TRL_EXPERIMENTAL_SILENCE")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
try:
    from trl import TrlParser
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    from trl.experimental.ppo.ppo_trainer import get_reward, unwrap_model_for_generation
finally:
    if _silenced is None:
        del os.environ["TRL_EXPERIMENTAL_SILENCE"]

__all__ = ["PPOConfig", "PPOTrainer", "TrlParser", "check_trl_version", "get_reward", "unwrap_model_for_generation"]
