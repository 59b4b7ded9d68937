"""Judges for control experiments: what hindsight must not be confused with."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import nn

from .chat import ChatFormat
from .envs.base import EnvironmentFactory, EnvironmentFailure
from .hindsight import HindsightReward
from .types import Trajectory
from .warm_start import Judge as StepJudge

Judge = Literal["model", "flipped", "random"]


class RandomJudge(HindsightReward):
    """Verdicts that know nothing: uniform random probabilities. A negative control."""

    def verdict_probs(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> np.ndarray:
        steps = sum(trajectory.num_steps for trajectory in trajectories)
        weights = self._rng.random((steps, len(self.verdicts)))
        return weights / weights.sum(axis=1, keepdims=True)


class OracleJudge(HindsightReward):
    """Verdicts that know everything: every episode is played again in an environment that tells. A positive control.

    Set `environment_factory` and `truth` before the first use; [`OracleJudge.knowing`] does.
    """

    environment_factory: EnvironmentFactory
    truth: StepJudge

    def knowing(self, environment_factory: EnvironmentFactory, truth: StepJudge) -> "OracleJudge":
        """Tells it where to look.

        Args:
            environment_factory: makes the environment of the episodes; it must play the same again.
            truth: is an action, not yet taken, a good one in the environment as it stands?
        """
        self.environment_factory, self.truth = environment_factory, truth
        return self

    def verdict_probs(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> np.ndarray:
        env = self.environment_factory()
        good = [verdict for trajectory in trajectories for verdict in self._replay(env, trajectory)]
        env.close()
        probs = np.zeros((len(good), len(self.verdicts)))
        best, worst = int(np.argmax(self.utilities)), int(np.argmin(self.utilities))
        probs[np.arange(len(good)), np.where(good, best, worst)] = 1.0
        return probs

    def _replay(self, env: Any, trajectory: Trajectory) -> Sequence[bool]:
        observation, _ = env.reset(seed=trajectory.seed, options=trajectory.task)
        verdicts = []
        for step, turn in enumerate(trajectory.turns):
            if observation != turn.observation:
                raise EnvironmentFailure(
                    f"task {dict(trajectory.task)!r} did not play the same again: step {step + 1} answered "
                    f"{turn.observation[:60]!r}, now it is {observation[:60]!r}; OracleJudge needs an environment "
                    "that reset(seed) makes the same"
                )
            verdicts.append(bool(self.truth(env, turn.action)))
            observation = env.step(turn.action)[0]
        return verdicts


def judge_for(name: Judge, tokenizer: Any, config: Any) -> HindsightReward:
    """The reward wrapper of a [`MISEConfig`] with the model's verdicts, with good and bad swapped, or random ones.

    Args:
        name (`"model"`, `"flipped"` or `"random"`): the judge.
        tokenizer (`PreTrainedTokenizerBase`): the policy's.
        config ([`MISEConfig`]): everything else.
    """
    chat = ChatFormat(tokenizer, getattr(config, "system_prompt", None))
    if name == "random":
        return RandomJudge.from_config(chat, config)
    if name == "flipped":
        flipped = copy.copy(config)
        flipped.hindsight_utilities = [1.0 - utility for utility in config.hindsight_utilities]
        return HindsightReward.from_config(chat, flipped)
    if name == "model":
        return HindsightReward.from_config(chat, config)
    raise ValueError(f"judge={name!r} is unknown; choose one of 'model', 'flipped', 'random'")
