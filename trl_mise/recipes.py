"""The tiny policies that the examples and learning tests start from, with their noise levels."""

import functools
import random
from dataclasses import dataclass, replace
from typing import Any

from .chat import ChatFormat
from .envs import kitchen
from .envs.base import EnvironmentFactory
from .hindsight import HindsightReward
from .rollout import RolloutLimits
from .tiny import MemoisedFormat, Progress, build_policy, build_tokenizer
from .warm_start import Judge, Phase, VerdictExamples, scripted_rollouts, verdict_examples, warm_start

VERDICTS = ("good", "bad")


@dataclass(frozen=True)
class KitchenRecipe:
    stations: int = 8
    values: int = 5
    demo_accuracy: float = 0.4
    verdict_accuracy: float = 0.75
    biased: bool = False
    seed: int = 0
    clean_accuracy: float = 0.98
    clean_steps: int = 300
    noisy_steps: int = 120
    episodes: int = 1500

    @property
    def hindsight_prompt(self) -> str:
        return "judge {{ action }}"

    @property
    def limits(self) -> RolloutLimits:
        return RolloutLimits(max_turns=self.stations, max_new_tokens=3, max_episode_tokens=16 + 12 * self.stations)

    def environment_factory(self, split: str = "train") -> EnvironmentFactory:
        return functools.partial(kitchen.KitchenEnv, stations=self.stations, values=self.values, split=split)

    def words(self) -> list[str]:
        return [*kitchen.vocabulary(self.stations, self.values), "judge", *VERDICTS]
