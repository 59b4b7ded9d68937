"""Judges for control experiments: what hindsight must not be confused with."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import nn

from .chat import ChatFormat
from .hindsight import HindsightReward
from .types import Trajectory

Judge = Literal["model", "flipped", "random"]


class RandomJudge(HindsightReward):
    """Verdicts that know nothing: uniform random probabilities. A negative control."""

    def verdict_probs(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> np.ndarray:
        steps = sum(trajectory.num_steps for trajectory in trajectories)
        weights = self._rng.random((steps, len(self.verdicts)))
        return weights / weights.sum(axis=1, keepdims=True)


def judge_for(name: Judge, tokenizer: Any, config: Any) -> HindsightReward:
    """The reward wrapper of a [`MISEConfig`] with the model's verdicts, with good and bad swapped, or random ones.

    Args:
        name (`"model"`, `"flipped"` or `"random"`): the judge.
        tokenizer (`PreTrainedTokenizerBase`): the policy's.
        config ([`MISEConfig`]): everything else.
    """
    chat = ChatFormat(tokenizer, config.system_prompt)
    if name == "random":
        return RandomJudge.from_config(chat, config)
    if name == "flipped":
        flipped = copy.copy(config)
        flipped.hindsight_utilities = [1.0 - utility for utility in config.hindsight_utilities]
        return HindsightReward.from_config(chat, flipped)
    if name == "model":
        return HindsightReward.from_config(chat, config)
    raise ValueError(f"judge={name!r} is unknown; choose one of 'model', 'flipped', 'random'")
