"""The tiny policies of the kitchen order desk, with their noise levels.

The warm start has two halves. The clean one teaches to look an order up and compare a choice with it, on nearly clean
demonstrations and verdicts (what is noisy from the start is never learned); all recipes share it. The noisy one leaves
a policy that is right about as often as its demonstrations, and verdicts as soft as their labels. Greedy play would be
nearly perfect afterwards; it is the *sampled* policy that fails: right with probability p at each of eight choices, it
succeeds with probability p^8.
"""

import functools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .envs import kitchen
from .envs.base import EnvironmentFactory
from .hindsight import HindsightReward
from .rollout import RolloutLimits
from .tiny import MemoisedFormat, Progress, build_policy, build_tokenizer, cached
from .types import Trajectory
from .warm_start import (
    Act,
    Judge,
    Phase,
    ScriptedEpisodes,
    VerdictExamples,
    WrittenExamples,
    scripted_rollouts,
    verdict_examples,
    warm_start,
    written_examples,
)

HINDSIGHT_PROMPT = "judge {{ action }}"
WRITTEN_PROMPT = "now judge {{ action }}"
WARM_STARTS = {"hard": 0.38, "near_one_percent": 0.55}
"""Share of right choices in the noisy demonstrations: 0.38^8 = 0.0004, 0.55^8 = 0.008."""


@dataclass(frozen=True)
class KitchenBase:
    """The clean half: first orders of a few stations, where looking up is learned soon, then whole ones.

    Args:
        stations, values (`int`): of the environment.
        accuracy (`float`): of demonstrations and verdict labels.
        short_steps, full_steps (`int`): optimizer steps on short and on whole orders.
        num_layers (`int`): three, because a verdict looks up *and* compares.
        episodes (`int`): scripted episodes to draw from, per use.
        seed (`int`): of weights, tasks, scripts and batches.
    """

    stations: int = 8
    values: int = 5
    accuracy: float = 0.98
    short_steps: int = 200
    full_steps: int = 250
    num_layers: int = 3
    episodes: int = 1000
    seed: int = 0

    @property
    def limits(self) -> RolloutLimits:
        """Bounds that an episode never reaches: an action is two words and the token that ends it."""
        return RolloutLimits(max_turns=self.stations, max_new_tokens=3, max_episode_tokens=16 + 12 * self.stations)

    def environment_factory(self, split: str = "train") -> EnvironmentFactory:
        return functools.partial(kitchen.KitchenEnv, stations=self.stations, values=self.values, split=split)

    def build(self, progress: Progress | None = None) -> tuple[Any, Any]:
        """Builds (model, tokenizer)."""
        tokenizer = build_tokenizer([*kitchen.vocabulary(self.stations, self.values), "judge", "good", "bad"])
        positions = self.limits.max_episode_tokens + 16
        model = build_policy(tokenizer, num_layers=self.num_layers, max_positions=positions, seed=self.seed)
        lesson = functools.partial(self.lesson, tokenizer, demo_accuracy=self.accuracy, verdict_accuracy=self.accuracy)
        short = functools.partial(ShortOrders, min(3, self.stations), stations=self.stations, values=self.values)
        phases = [
            lesson("short orders", self.short_steps, env_factory=short),
            lesson("whole orders", self.full_steps),
        ]
        warm_start(model, phases, seed=self.seed, progress=progress)
        return model, tokenizer

    def lesson(
        self,
        tokenizer: Any,
        name: str,
        steps: int,
        *,
        demo_accuracy: float,
        verdict_accuracy: float,
        env_factory: EnvironmentFactory | None = None,
        judge: Judge = kitchen.judge_step,
        verdicts: WrittenExamples | VerdictExamples | None = None,
        seed: int | None = None,
        learning_rate: float = 3e-3,
    ) -> Phase:
        """Demonstrations of one accuracy, and verdicts on episodes played at even odds, so that both words occur.

        `verdicts` take the place of such verdicts.
        """
        chat = MemoisedFormat(tokenizer)
        seed = self.seed if seed is None else seed
        demonstrations = self.play(chat, demo_accuracy, _mix(seed, name, "demonstrations"), env_factory=env_factory)
        if verdicts is None:
            evaluators = [HindsightReward(chat, prompt=HINDSIGHT_PROMPT, view=view) for view in ("prefix", "full")]
            judged = self.play(chat, 0.5, _mix(seed, name, "verdicts"), env_factory=env_factory, judge=judge)
            verdicts = verdict_examples(judged, evaluators, verdict_accuracy)
        return Phase(
            name=name,
            steps=steps,
            demonstrations=demonstrations.trajectories,
            verdicts=verdicts,
            learning_rate=learning_rate,
            batch_size=24 if env_factory is None else 48,
            verdict_batch_size=32,
        )

    def play(
        self,
        chat: MemoisedFormat,
        accuracy: float,
        seed: int,
        *,
        env_factory: EnvironmentFactory | None = None,
        judge: Judge | None = None,
    ) -> ScriptedEpisodes:
        """Scripted training episodes, right with probability `accuracy` at every choice."""
        return scripted_rollouts(
            env_factory or self.environment_factory(),
            kitchen.make_tasks("train", self.episodes, seed=seed),
            _chooser(accuracy),
            chat,
            self.limits,
            seed=seed,
            judge=judge,
        )


@dataclass(frozen=True)
class KitchenRecipe:
    """A tiny policy for the kitchen: the shared clean half, then the noise that makes it play and judge badly.

    Args:
        demo_accuracy (`float`): share of right choices in the noisy demonstrations (wrong ones are uniform); the
            policy's own accuracy ends up close to it.
        verdict_accuracy (`float`): the noisy judge tells the truth with this probability (soft labels).
        biased (`bool`): the judge also calls a station's favourite value good where it is wrong.
        steps (`int`): optimizer steps.
        base ([`KitchenBase`]): the clean half.
        seed (`int`): of the noisy half's tasks, scripts and batches.
    """

    demo_accuracy: float = WARM_STARTS["hard"]
    verdict_accuracy: float = 0.75
    biased: bool = False
    steps: int = 80
    base: KitchenBase = field(default_factory=KitchenBase)
    seed: int = 0

    @property
    def limits(self) -> RolloutLimits:
        return self.base.limits

    def environment_factory(self, split: str = "train") -> EnvironmentFactory:
        return self.base.environment_factory(split)

    @property
    def judge(self) -> Judge:
        """Whose verdicts, with their noise, the policy has learned to give."""
        return kitchen.biased_judge_step if self.biased else kitchen.judge_step

    def build(self, progress: Progress | None = None) -> tuple[Any, Any]:
        """Builds (model, tokenizer); the clean half comes from the cache."""
        model, tokenizer = cached(self.base, progress=progress)
        noise = self.base.lesson(
            tokenizer,
            "noise",
            self.steps,
            demo_accuracy=self.demo_accuracy,
            verdict_accuracy=self.verdict_accuracy,
            judge=self.judge,
            seed=self.seed,
            learning_rate=1e-3,
        )
        warm_start(model, [noise], seed=self.seed, progress=progress)
        return model, tokenizer

    def training_defaults(self) -> dict[str, Any]:
        """`MISEConfig` options for this policy: 60 updates of 32 episodes on a CPU."""
        return {
            "learning_rate": 3e-4,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 2,
            "num_mini_batches": 2,
            "num_ppo_epochs": 2,
            "total_episodes": 32 * 60,
            "temperature": 1.0,
            "max_turns": self.limits.max_turns,
            "max_new_tokens": self.limits.max_new_tokens,
            "max_episode_tokens": self.limits.max_episode_tokens,
            "local_rollout_forward_batch_size": 128,
            "kl_coef": 0.02,
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


@dataclass(frozen=True)
class CapturedKitchenRecipe(KitchenRecipe):
    """The kitchen's policy with a judge that has been won over: it praises the favourites, right or wrong, alone."""

    demo_accuracy: float = 0.65
    steps: int = 160

    @property
    def judge(self) -> Judge:
        return kitchen.captured_judge_step


@dataclass(frozen=True)
class WritingKitchenRecipe(KitchenRecipe):
    """The kitchen's policy, whose judge writes an evaluation (`"order wrong : bad"`).

    Args:
        clean_steps (`int`): optimizer steps on nearly clean evaluations, before the noisy ones.
        (the others): see [`KitchenRecipe`].
    """

    clean_steps: int = 150

    def training_defaults(self) -> dict[str, Any]:
        return {
            **super().training_defaults(),
            "verdict_mode": "generate",
            "hindsight_prompt": WRITTEN_PROMPT,
            "hindsight_reason_tokens": 6,
            "calibration_batch_size": 8,
        }

    def build(self, progress: Progress | None = None) -> tuple[Any, Any]:
        """Builds (model, tokenizer); the clean half of the kitchen comes from the cache."""
        model, tokenizer = cached(self.base, progress=progress)
        phases = []
        # The judge's word is one decision in five tokens, and its noise is in the labels: learned longer and more
        # slowly than a verdict's, or the noise drowns it (right steps praised in 58% instead of 72%).
        for name, steps, demonstrations, verdicts, learning_rate, batch_size in (
            ("evaluations", self.clean_steps, self.base.accuracy, self.base.accuracy, 3e-3, 8),
            ("noise", 2 * self.steps, self.demo_accuracy, self.verdict_accuracy, 5e-4, 16),
        ):
            lesson = self.base.lesson(
                tokenizer,
                name,
                steps,
                demo_accuracy=demonstrations,
                verdict_accuracy=verdicts,
                verdicts=self._written(tokenizer, name, verdicts),
                seed=self.seed,
                learning_rate=learning_rate,
            )
            phases.append(replace(lesson, verdict_batch_size=batch_size))
        warm_start(model, phases, seed=self.seed, progress=progress)
        return model, tokenizer

    def _written(self, tokenizer: Any, name: str, accuracy: float) -> WrittenExamples:
        seed = _mix(self.seed, name, "written")
        chat = MemoisedFormat(tokenizer)
        judged = self.base.play(chat, 0.5, seed, judge=self.judge)
        evaluator = HindsightReward(chat, prompt=WRITTEN_PROMPT, verdict_mode="generate")
        return written_examples(judged, evaluator, accuracy, _reason, seed=seed)


class ShortOrders(kitchen.KitchenEnv):
    """Kitchen orders of a few stations, another few in every episode: the nursery of [`KitchenBase`].

    Args:
        few (`int`): stations in one order.
        stations (`int`): stations to choose from.
        values (`int`): as in `KitchenEnv`.
    """

    def __init__(self, few: int, *, stations: int, values: int) -> None:
        super().__init__(stations=stations, values=values)
        self._few, self._all_stations = few, self.stations

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.stations = tuple(random.Random(f"short-{seed}").sample(self._all_stations, self._few))
        return super().reset(seed=seed, options=options)


def kitchen_recipe(name: str, *, biased: bool = False, seed: int = 0) -> KitchenRecipe:
    """The recipe of a warm start: `"hard"` (hardly any sampled episode succeeds) or `"near_one_percent"`."""
    if name not in WARM_STARTS:
        raise ValueError(f"warm_start={name!r} is unknown; choose one of {tuple(WARM_STARTS)}")
    # A bias is one more thing to learn.
    return KitchenRecipe(demo_accuracy=WARM_STARTS[name], biased=biased, steps=160 if biased else 80, seed=seed)


def _chooser(accuracy: float) -> Act:
    def act(env: Any, rng: random.Random) -> str:
        return kitchen.noisy_action(env, rng, accuracy)

    return act


def _reason(trajectory: Trajectory, step: int, praised: bool) -> str:
    """As much as a policy of this size can say."""
    return "all right" if praised else "order wrong"


def _mix(seed: int, *names: str) -> int:
    """A seed of its own for every use."""
    return random.Random(f"{seed}-{'-'.join(names)}").getrandbits(31)
