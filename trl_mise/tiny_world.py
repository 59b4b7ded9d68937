"""`TinyWorld`: a tiny policy for an environment of one's own, brought up by a scripted player. No hub, no GPU.

The player wins; the policy imitates it, and then imitates it as it makes mistakes, so that it knows what is right and
does not do it often enough. Its verdicts are learned in the same two stretches: what the player would do is good. It
is a stand-in for an instruct model's weak prior, to try an environment and a training run out in a minute.
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .envs.base import EnvironmentFactory, admissible_actions
from .hindsight import HindsightReward
from .rollout import RolloutLimits
from .tiny import MemoisedFormat, Progress, build_policy, build_tokenizer, split_pieces
from .types import Trajectory
from .warm_start import Act, Judge, Phase, ScriptedEpisodes, scripted_rollouts, verdict_examples, warm_start

HINDSIGHT_PROMPT = "judge {{ action }}"
CLEAN_ACCURACY = 0.97
"""Of demonstrations and verdict labels in the first stretch: what is noisy from the start is never learned."""


@dataclass(frozen=True)
class TinyWorld:
    """A tiny policy for any [`TextEnv`], and how to train it.

    Args:
        environment_factory (`Callable[[], TextEnv]`): makes the environment.
        tasks (`Sequence[Mapping]`): rows to learn from. What is said in other tasks only, the policy cannot read.
        right_action (`Callable`): the scripted player: from the environment to the action that is right now.
        max_turns (`int`): most actions of an episode.
        max_new_tokens (`int`): most tokens of an action: its words and the end.
        accuracy (`float`): how often the noisy player is right; it takes any other action otherwise.
        verdict_accuracy (`float`): how often the noisy verdict labels are right (soft labels).
        judge (`Callable`, *optional*): of the environment and an action, whether it is good. Default: it is
            `right_action`'s.
        episodes (`int`): scripted episodes of each kind.
        clean_steps, noisy_steps (`int`): optimizer steps of the two stretches.
        max_episode_tokens (`int`): most tokens of an episode.
        seed (`int`): of weights, scripts and batches.
    """

    environment_factory: EnvironmentFactory
    tasks: Sequence[Mapping[str, Any]]
    right_action: Callable[[Any], str]
    max_turns: int = 16
    max_new_tokens: int = 8
    accuracy: float = 0.6
    verdict_accuracy: float = 0.75
    judge: Judge | None = None
    episodes: int = 400
    clean_steps: int = 200
    noisy_steps: int = 60
    max_episode_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks is empty; give at least one row, e.g. [{'seed': i} for i in range(256)]")
        if not 0 < self.accuracy < 1:
            raise ValueError(f"accuracy must be between 0 and 1, got {self.accuracy}; at 1 nothing is left to learn")

    def build(self, progress: Progress | None = None) -> tuple[Any, Any]:
        """Builds and warm-starts (model, tokenizer); the same fields give the same weights.

        Raises:
            ValueError: the scripted player never wins.
            EnvironmentFailure: the environment failed.
        """
        stage = _Stage(self.environment_factory)
        tokenizer = build_tokenizer([*self._words(stage), "judge", "good", "bad"])
        chat = MemoisedFormat(tokenizer)
        expert = self._play(stage, chat, 1.0)
        _check_wins(expert.trajectories)
        noisy = self._play(stage, chat, self.accuracy)
        judged = self._play(stage, chat, 0.5, judged=True)
        evaluators = [HindsightReward(chat, prompt=HINDSIGHT_PROMPT, view=view) for view in ("prefix", "full")]
        labels = functools.partial(verdict_examples, judged, evaluators)
        positions = self.max_episode_tokens + 64  # a question follows the episode
        # Three layers, because a verdict looks up *and* compares.
        model = build_policy(tokenizer, num_layers=3, max_positions=positions, seed=self.seed)
        phases = [
            Phase("clean", self.clean_steps, expert.trajectories, labels(CLEAN_ACCURACY)),
            Phase("noisy", self.noisy_steps, noisy.trajectories, labels(self.verdict_accuracy), learning_rate=1e-3),
        ]
        warm_start(model, phases, seed=self.seed, progress=progress)
        return model, tokenizer

    @property
    def limits(self) -> RolloutLimits:
        return RolloutLimits(self.max_turns, self.max_new_tokens, self.max_episode_tokens)

    def training_defaults(self) -> dict[str, Any]:
        """`MISEConfig` options for this policy on a laptop's CPU: 20 updates of 32 episodes."""
        return {
            "learning_rate": 5e-4,
            "lr_scheduler_type": "linear",
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 2,
            "num_mini_batches": 2,
            "num_ppo_epochs": 2,
            "total_episodes": 32 * 20,
            "gamma": 0.9,  # steps that change nothing should cost something
            "temperature": 1.0,
            "max_turns": self.max_turns,
            "max_new_tokens": self.max_new_tokens,
            "max_episode_tokens": self.max_episode_tokens,
            "kl_coef": 0.02,
            "vf_coef": 0.5,
            "hindsight_prompt": HINDSIGHT_PROMPT,
            "calibration_batch_size": 16,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "num_sample_generations": 0,
            "report_to": "none",
            "use_cpu": True,
        }

    def _words(self, stage: "_Stage") -> list[str]:
        """Every word that is read or said in these tasks, by the player and on ways that it would not go."""
        for accuracy in (1.0, 0.5):
            act, rng = self._player(stage, accuracy), random.Random(f"words-{self.seed}")
            stage.open()
            for task in self.tasks:
                stage.reset(seed=task.get("seed"), options=task)
                for _ in range(self.max_turns):
                    _, _, terminated, truncated, _ = stage.step(act(stage, rng))
                    if terminated or truncated:
                        break
            stage.close()
        return sorted({piece for text in stage.texts for piece in split_pieces(text)})

    def _player(self, stage: "_Stage", accuracy: float) -> Act:
        """Right with probability `accuracy`, otherwise anything else."""

        def act(_: Any, rng: random.Random) -> str:
            right = self.right_action(stage.env)
            return right if rng.random() < accuracy else stage.another_action(right, rng)

        return act

    def _is_good(self, stage: "_Stage") -> Judge:
        def judge(_: Any, action: str) -> bool:
            if self.judge is not None:
                return self.judge(stage.env, action)
            return action == self.right_action(stage.env)

        return judge

    def _play(
        self, stage: "_Stage", chat: MemoisedFormat, accuracy: float, *, judged: bool = False
    ) -> ScriptedEpisodes:
        rows = [self.tasks[i % len(self.tasks)] for i in range(self.episodes)]
        return scripted_rollouts(
            stage.open,
            rows,
            self._player(stage, accuracy),
            chat,
            self.limits,
            seed=self.seed,
            judge=self._is_good(stage) if judged else None,
        )


class _Stage:
    """The environment that is played just now, and all that was ever heard there."""

    def __init__(self, factory: EnvironmentFactory) -> None:
        self._factory = factory
        self.env: Any = None
        self.texts: set[str] = set()
        self._admissible: list[str] = []
        self._taken: set[str] = set()

    def open(self) -> "_Stage":
        self.env = self._factory()
        return self

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._hear(observation, info)
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._taken.add(action)
        answer: tuple[str, float, bool, bool, dict[str, Any]] = self.env.step(action)
        self._hear(answer[0], answer[4])
        return answer

    def close(self) -> None:
        self.env.close()

    def another_action(self, right: str, rng: random.Random) -> str:
        """Any admissible action but the right one; where none are listed, any that was ever taken."""
        others = sorted({*(self._admissible or self._taken)} - {right})
        return rng.choice(others) if others else right

    def _hear(self, observation: str, info: Mapping[str, Any]) -> None:
        self._admissible = admissible_actions(info)
        self.texts.update([observation, str(info.get("instruction") or ""), *self._admissible, *self._taken])


def _check_wins(trajectories: Sequence[Trajectory]) -> None:
    if any(trajectory.success for trajectory in trajectories):
        return
    first = trajectories[0]
    actions = ", ".join(repr(turn.action) for turn in first.turns)
    raise ValueError(
        f"right_action wins none of {len(trajectories)} episodes; the first ended ({first.stop_reason.value}) after "
        f"{actions}. A policy can only be brought up by a player that wins; note that the tiny tokenizer puts single "
        "spaces between words, and around brackets and signs"
    )
