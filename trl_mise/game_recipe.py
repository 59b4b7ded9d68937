"""What the tiny policies of TextWorld and ScienceWorld share: words from the games, and two stretches of warm start.

As in the web shop (`webshop_recipe.py`) the skill comes first and the habits that hide it second, and verdicts are
learned from soft labels that are right with probability `verdict_accuracy`. The result can play and judge these few
games and nothing else: it shows that a training run works, in minutes and without a GPU.
"""

import functools
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from .envs.base import EnvironmentFactory
from .envs.plain_words import PlainWords
from .envs.vocabulary import expert_vocabulary
from .hindsight import HindsightReward
from .rollout import RolloutLimits
from .tiny import MemoisedFormat, Progress, build_policy, build_tokenizer
from .warm_start import Phase, ScriptedEpisodes, scripted_rollouts, verdict_examples, warm_start

HINDSIGHT_PROMPT = "judge {{ action }}"
CLEAN_ACCURACY = 0.97
"""Of the verdict labels in the expert's stretch."""


@dataclass(frozen=True)
class GameRecipe(ABC):
    """A tiny policy for a few generated games, and how to train it.

    Args:
        train_tasks, eval_tasks (`int`): different games for training, and held out.
        task_seed (`int`): which games are drawn.
        habit (`float`): how often the second demonstrator does what he is used to instead of what is right.
        wander (`float`): how often he does something that leads nowhere.
        verdict_accuracy (`float`): how often the verdict labels are right (soft labels).
        repeats (`int`): demonstrations of each kind and training game.
        expert_steps, habit_steps (`int`): optimizer steps of the two stretches.
        seed (`int`): of weights and batches.
    """

    train_tasks: int = 32
    eval_tasks: int = 16
    task_seed: int = 0
    habit: float = 0.7
    wander: float = 0.15
    verdict_accuracy: float = 0.8
    repeats: int = 20
    expert_steps: int = 160
    habit_steps: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train_tasks", "eval_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}: the policy is made for its games"
                )

    @property
    @abstractmethod
    def limits(self) -> RolloutLimits:
        """Bounds of an episode."""

    @abstractmethod
    def game_factory(self) -> EnvironmentFactory:
        """Makes the game itself."""

    @abstractmethod
    def make_tasks(self, held_out: bool) -> list[dict[str, Any]]:
        """The dataset rows of the training games, or of those that are held out."""

    @abstractmethod
    def right_action(self, env: PlainWords) -> str:
        """What is to be done next."""

    @abstractmethod
    def habitual_action(self, env: PlainWords, right: str, rng: random.Random) -> str:
        """What is done by habit where `right` would be right; often the same."""

    @abstractmethod
    def idle_action(self, env: PlainWords, rng: random.Random) -> str:
        """Something that leads nowhere, and does no harm."""

    def environment_factory(self) -> EnvironmentFactory:
        """Makes the game in plain words, as the policy was brought up with it."""
        return functools.partial(PlainWords, self.game_factory())

    def training_defaults(self) -> dict[str, Any]:
        """`MISEConfig` options for this policy on a laptop's CPU: 20 updates of 32 episodes."""
        return {
            "learning_rate": 3e-4,
            "lr_scheduler_type": "linear",
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 2,
            "num_mini_batches": 2,
            "num_ppo_epochs": 3,
            "total_episodes": 32 * 20,
            "num_envs": 4,
            "gamma": 0.95,  # steps that change nothing should cost something
            "temperature": 1.0,
            "max_turns": self.limits.max_turns,
            "max_new_tokens": self.limits.max_new_tokens,
            "max_episode_tokens": self.limits.max_episode_tokens,
            "local_rollout_forward_batch_size": 64,
            "kl_coef": 0.05,
            "vf_coef": 0.5,
            "hindsight_prompt": HINDSIGHT_PROMPT,
            "calibration_batch_size": 32,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "num_sample_generations": 0,
            "report_to": "none",
            "use_cpu": True,
        }

    def build(self, progress: Progress | None = None) -> tuple[Any, Any]:
        """Builds and warm-starts (model, tokenizer)."""
        training = self.make_tasks(held_out=False)
        env: Any = self.environment_factory()()  # one for everything: it remembers the way through a game
        words = expert_vocabulary(env, [*training, *self.make_tasks(held_out=True)], self.right_action)
        tokenizer = build_tokenizer([*words, "judge", "good", "bad"])
        chat = MemoisedFormat(tokenizer)
        positions = self.limits.max_episode_tokens + 32  # a question follows the episode
        model = build_policy(tokenizer, num_layers=3, max_positions=positions, seed=self.seed)
        evaluators = [HindsightReward(chat, prompt=HINDSIGHT_PROMPT, view=view) for view in ("prefix", "full")]
        expert = self._play(env, chat, training, habit=0.0, wander=0.0, seed=1)
        habitual = self._play(env, chat, training, habit=self.habit, wander=self.wander, seed=2)
        judged = self._play(env, chat, training, habit=0.5, wander=0.3, seed=3, judged=True)
        clean, noisy = (
            verdict_examples(judged, evaluators, accuracy) for accuracy in (CLEAN_ACCURACY, self.verdict_accuracy)
        )
        phases = [
            Phase("expert", self.expert_steps, expert.trajectories, clean),
            Phase("habits", self.habit_steps, habitual.trajectories, noisy, learning_rate=1e-3),
        ]
        warm_start(model, phases, seed=self.seed, progress=progress)
        return model, tokenizer

    def _play(
        self,
        env: PlainWords,
        chat: MemoisedFormat,
        tasks: list[dict[str, Any]],
        *,
        habit: float,
        wander: float,
        seed: int,
        judged: bool = False,
    ) -> ScriptedEpisodes:
        def act(_: Any, rng: random.Random) -> str:
            draw = rng.random()
            if draw < wander:
                return self.idle_action(env, rng)
            right = self.right_action(env)
            return self.habitual_action(env, right, rng) if draw < wander + (1 - wander) * habit else right

        def judge(_: Any, action: str) -> bool:
            return action == self.right_action(env)

        return scripted_rollouts(
            lambda: env,
            tasks * (self.repeats if habit or wander else 1),
            act,
            chat,
            self.limits,
            seed=seed,
            judge=judge if judged else None,
        )
