"""A user's typed script: the public names say what they are. Only checked, with `mypy --strict`; never run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import assert_type

from trl_mise import (
    CalibrationCallback,
    HindsightReward,
    HindsightScores,
    MISEConfig,
    MISEGRPOConfig,
    MISEGRPOTrainer,
    MISETrainer,
    StopReason,
    TextEnv,
    Trajectory,
    Turn,
    check_env,
)
from trl_mise.evaluation import EpisodeResult
from trl_mise.model_agent import ModelAgent
from trl_mise.versions import report


class Door:
    """An environment of one's own."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        return "a door", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "open", 1.0, True, False, {}

    def close(self) -> None:
        pass


class Optimist(HindsightReward):
    """A judge of one's own."""

    def verdict_probs(self, model: Any, trajectories: Sequence[Trajectory]) -> np.ndarray:
        steps = sum(trajectory.num_steps for trajectory in trajectories)
        return np.tile([0.9, 0.1], (steps, 1))


def play(trajectory: Trajectory, scores: HindsightScores, trainer: MISETrainer, grpo: MISEGRPOTrainer) -> None:
    env: TextEnv = Door()
    assert_type(env.step("open"), tuple[str, float, bool, bool, dict[str, Any]])
    check_env(Door, task={"seed": 0})
    assert_type(trajectory.turns, tuple[Turn, ...])
    assert_type(trajectory.stop_reason, StopReason)
    assert_type(trajectory.episode_return, float)
    assert_type(scores.split(), list[np.ndarray])
    assert_type(trainer.evaluate(), dict[str, float])
    assert_type(trainer.hindsight, HindsightReward | None)
    assert_type(grpo.hindsight, HindsightReward)
    assert_type(report(), dict[str, str])
    config: MISEConfig = trainer.args
    assert_type(config.max_turns, int)
    assert_type(config.hindsight_verdicts, list[str])
    assert_type(CalibrationCallback.from_config(config), CalibrationCallback)
    assert_type(MISEGRPOConfig("out").success_return, float)
    agent = ModelAgent.from_pretrained("model")
    assert_type(agent.play(Door, [{"seed": 0}], max_steps=3), list[EpisodeResult])
