"""`MISEGRPOConfig`: TRL's `GRPOConfig` plus hindsight and calibration."""

from dataclasses import dataclass
from typing import Any

from ._trl import grpo_classes
from .hindsight_config import HindsightConfig
from .own_ppo_config import option

GRPOConfig: Any = grpo_classes()[0]


@dataclass
class MISEGRPOConfig(HindsightConfig, GRPOConfig):
    r"""
    Configuration of [`MISEGRPOTrainer`]: everything in TRL's `GRPOConfig`, with the same defaults, the judge's options
    of [`HindsightConfig`], and those below. The scores are added to the advantages (`hindsight_placement`
    `"advantage"`): GRPO has no critic that could carry a reward back to earlier steps.

    Parameters:
        step_delimiter (`str`, *optional*):
            Without tools: where a completion is cut into steps. Defaults to one or more newlines.
        success_return (`float`, *optional*, defaults to `1.0`):
            An episode whose weighted sum of rewards is at least this much is won: calibration compares won and lost
            ones.
    """

    step_delimiter: str | None = option(None, "Where a completion is cut into steps; defaults to newlines.")
    success_return: float = option(1.0, "Return from which an episode counts as won.")

    def __post_init__(self) -> None:
        # TRL's default is True, and an error on a machine that cannot do it.
        self.choose_precision()
        super().__post_init__()
        self.complete_hindsight()
        if self.hindsight_placement != "advantage":
            raise ValueError(
                f"hindsight_placement={self.hindsight_placement!r} needs a critic, which GRPO does not have; leave it "
                "at 'advantage', or use MISETrainer"
            )
        if self.step_delimiter == "":
            raise ValueError("step_delimiter must not be empty; use None for newlines")
        if not abs(self.success_return) < float("inf"):
            raise ValueError(f"success_return must be a finite number, got {self.success_return}")

    # The names by which the calibration knows these.

    @property
    def batch_size(self) -> int:
        """Episodes of an update, over all processes."""
        return int(self.generation_batch_size)

    @property
    def cliprange(self) -> float:
        return float(self.epsilon)

    @property
    def kl_coef(self) -> float:
        return float(self.beta)

    @classmethod
    def from_grpo_config(cls, config: Any) -> "MISEGRPOConfig":
        """Upgrades a `GRPOConfig`: same values, MISE's own options at their defaults."""
        values = cls.values_of(config)
        values["generation_batch_size"] = None  # worked out from steps_per_generation, as it was
        return cls(**values)
