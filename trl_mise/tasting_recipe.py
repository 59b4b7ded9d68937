"""The tiny policy of the chef's table: it can serve, knows nobody's taste, and can read a comment in hindsight.

It was brought up in many houses, each with guests of other tastes: so it learned the form of an episode, to serve at
random, and to judge a dish by what the guest said of it, but no taste. Asked before anything was said (the `"prefix"`
view), the best that it can have learned is to say "good" as often as dishes pleased.
"""

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .envs import tasting
from .envs.base import EnvironmentFactory
from .hindsight import HindsightReward
from .recipes import KitchenRecipe
from .rollout import RolloutLimits
from .tiny import MemoisedFormat, Progress, build_policy, build_tokenizer
from .warm_start import Act, Judge, Phase, VerdictExamples, scripted_rollouts, verdict_examples, warm_start

HINDSIGHT_PROMPT = "judge {{ action }} {{ observation.split() | last }}"
"""The answer, and the dish that was asked for. Asked about the answer alone, a judge looks up the dish that is named
*there*, and a policy learned to name one that pleased, whatever was asked for."""
CLEAN_ACCURACY = 0.98


@dataclass(frozen=True)
class TastingRecipe:
    """A tiny policy for `TastingEnv`.

    Args:
        verdict_accuracy (`float`): the judge tells the truth with this probability (soft labels).
        biased (`bool`): the judge also praises the house style.
        courses, values, guests (`int`): of the environment.
        clean_steps, noisy_steps (`int`): optimizer steps on nearly clean verdicts, and on noisy ones.
        episodes (`int`): scripted episodes of each use.
        seed (`int`): of weights, tasks, scripts and batches.
    """

    verdict_accuracy: float = 0.75
    biased: bool = False
    courses: int = 8
    values: int = 5
    guests: int = 2
    clean_steps: int = 800
    noisy_steps: int = 80
    episodes: int = 1500
    seed: int = 0

    @property
    def limits(self) -> RolloutLimits:
        """Bounds that an episode never reaches: an action is two words and the token that ends it."""
        return RolloutLimits(max_turns=self.courses, max_new_tokens=3, max_episode_tokens=24 + 16 * self.courses)

    def environment_factory(self, split: str = "train") -> EnvironmentFactory:
        return functools.partial(
            tasting.TastingEnv, courses=self.courses, values=self.values, guests=self.guests, split=split
        )

    def training_defaults(self) -> dict[str, Any]:
        """`MISEConfig` options for this policy: the kitchen's, with this environment's limits."""
        return {
            **KitchenRecipe().training_defaults(),
            "max_turns": self.limits.max_turns,
            "max_new_tokens": self.limits.max_new_tokens,
            "max_episode_tokens": self.limits.max_episode_tokens,
            "hindsight_prompt": HINDSIGHT_PROMPT,
        }

    def build(self, progress: Progress | None = None) -> tuple[Any, Any]:
        """Builds and warm-starts (model, tokenizer)."""
        words = tasting.vocabulary(self.courses, self.values, self.guests)
        tokenizer = build_tokenizer([*words, "judge", "good", "bad"])
        chat = MemoisedFormat(tokenizer)
        positions = self.limits.max_episode_tokens + 16
        model = build_policy(tokenizer, num_layers=3, max_positions=positions, seed=self.seed)
        play = functools.partial(scripted_rollouts, self.environment_factory(), chat=chat, limits=self.limits)

        def verdicts(use: str, judge: Judge, accuracy: float, views: Sequence[Any]) -> VerdictExamples:
            judged = play(self._other_houses(use), _clumsily, seed=self.seed, judge=judge)
            evaluators = [HindsightReward(chat, prompt=HINDSIGHT_PROMPT, view=view) for view in views]
            return verdict_examples(judged, evaluators, accuracy)

        # What cannot be predicted only gets in the way of learning to look something up: first in the house style.
        styled = play(self._other_houses("styled"), _in_house_style, seed=self.seed).trajectories
        served = play(self._other_houses("served"), _at_random(1 / self.values), seed=self.seed).trajectories
        clean = verdicts("clean", tasting.judge_step, CLEAN_ACCURACY, ("full", "masked"))
        judge = tasting.biased_judge_step if self.biased else tasting.judge_step
        noisy = verdicts("noisy", judge, self.verdict_accuracy, ("full", "prefix", "full", "masked"))
        noisy_steps = self.noisy_steps * (2 if self.biased else 1)  # a bias is one more thing to learn
        phases = [
            Phase("clean", self.clean_steps, styled, clean, batch_size=8, verdict_batch_size=32),
            Phase("noise", noisy_steps, served, noisy, learning_rate=1e-3, batch_size=24, verdict_batch_size=32),
        ]
        warm_start(model, phases, seed=self.seed, progress=progress)
        return model, tokenizer

    def _other_houses(self, use: str) -> list[Mapping[str, Any]]:
        """Tasks in a house of their own each, never in the one that is trained in."""
        rng = random.Random(f"houses-{self.seed}-{use}")
        tasks = tasting.make_tasks("train", self.episodes, seed=rng.getrandbits(31))
        return [{**task, "house": 1 + rng.getrandbits(30)} for task in tasks]


def _at_random(accuracy: float) -> Act:
    def act(env: Any, rng: random.Random) -> str:
        return tasting.noisy_action(env, rng, accuracy)

    return act


def _clumsily(env: Any, rng: random.Random) -> str:
    """Right half the time, and now and then no answer to what was asked for; a judge must have seen such steps."""
    if rng.random() < 0.15:
        return " ".join(rng.choice([*env.dishes, *env.values]) for _ in range(2))
    return tasting.noisy_action(env, rng, 0.5)


def _in_house_style(env: Any, rng: random.Random) -> str:
    return tasting.house_style_action(env)
