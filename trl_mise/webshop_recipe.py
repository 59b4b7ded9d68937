"""The tiny policy of the web shop demo: it knows how to shop, and its habits keep it from doing so.

Warm start in two stretches. First the expert's episodes, so that the skill is there (search, compare, choose options);
then those of a hasty customer, who mostly searches by category alone, takes the first result and skips the options, so
that the habits win: greedy play succeeds on about one goal in ten. Verdicts are learned from soft labels, first nearly
clean ones, then ones that are right with probability `verdict_accuracy`, on the steps of hasty and clumsy customers.
It is a stand-in for an instruct model's weak prior: more is in it than it shows.
"""

import functools
import random
from dataclasses import dataclass
from typing import Any, ClassVar

from .envs import webshop
from .envs.base import EnvironmentFactory
from .envs.webshop_policies import biased_judge_step, expert_action, hasty_action, judge_step
from .hindsight import HindsightReward
from .rollout import RolloutLimits
from .tiny import MemoisedFormat, Progress, build_policy, build_tokenizer
from .warm_start import Act, Judge, Phase, ScriptedEpisodes, scripted_rollouts, verdict_examples, warm_start

HINDSIGHT_PROMPT = "judge {{ action }}"
CLEAN_ACCURACY = 0.97
"""Of the verdict labels in the expert's stretch."""


@dataclass(frozen=True)
class WebShopRecipe:
    """A tiny policy for a small shop, and how to train it.

    Args:
        verdict_accuracy (`float`): how often the verdict labels are right (soft labels).
        p_search, p_first, p_skip (`float`): the hasty customer's habits: search by category alone, click the first
            result whatever it is, skip the options.
        episodes (`int`): demonstrations of each kind.
        expert_steps, hasty_steps (`int`): optimizer steps of the two stretches.
        num_layers (`int`): three, because a verdict looks up *and* compares.
        num_products, attributes_per_category (`int`): of the shop, see `WebShopEnv`.
        biased (`bool`): the noisy verdicts are those of a judge who also praises going round, searches and ways back.
        seed (`int`): of weights and batches.
    """

    verdict_accuracy: float = 0.75
    p_search: float = 0.65
    p_first: float = 0.7
    p_skip: float = 0.7
    episodes: int = 2000
    expert_steps: int = 300
    hasty_steps: int = 120
    num_layers: int = 3
    num_products: int = 64
    attributes_per_category: int = 8
    biased: bool = False
    seed: int = 0

    # No fields: they would rename every policy that is in somebody's cache.
    num_heads: ClassVar[int] = 4
    batch_size: ClassVar[int] = 32
    verdict_batch_size: ClassVar[int] = 16

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Arguments of `WebShopEnv` and of its `make_tasks`: the small shop, instruction on the first page only."""
        return {
            **webshop.SMALL_SHOP,
            "num_products": self.num_products,
            "attributes_per_category": self.attributes_per_category,
            "show_instruction": False,
        }

    @property
    def limits(self) -> RolloutLimits:
        return RolloutLimits(max_turns=8, max_new_tokens=10, max_episode_tokens=480)

    def environment_factory(self, split: str = "train") -> EnvironmentFactory:
        return functools.partial(webshop.WebShopEnv, split=split, **self.env_kwargs)

    def training_defaults(self) -> dict[str, Any]:
        """`MISEConfig` options for this policy on a laptop's CPU."""
        return {
            "learning_rate": 4e-4,
            "lr_scheduler_type": "linear",
            "per_device_train_batch_size": 48,
            "gradient_accumulation_steps": 2,
            "num_mini_batches": 2,
            "num_ppo_epochs": 3,
            "total_episodes": 96 * 30,
            "gamma": 0.95,  # steps that change nothing should cost something
            "temperature": 1.0,
            "max_turns": self.limits.max_turns,
            "max_new_tokens": self.limits.max_new_tokens,
            "max_episode_tokens": self.limits.max_episode_tokens,
            "local_rollout_forward_batch_size": 128,
            "kl_coef": 0.05,
            "vf_coef": 0.5,
            "hindsight_prompt": HINDSIGHT_PROMPT,
            "calibration_batch_size": 32,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 10,
            "save_strategy": "no",
            "num_sample_generations": 0,
            "report_to": "none",
            "use_cpu": True,
        }

    def build(self, progress: Progress | None = None) -> tuple[Any, Any]:
        """Builds and warm-starts (model, tokenizer)."""
        tokenizer = build_tokenizer([*webshop.vocabulary(self.env_kwargs), "judge", "good", "bad"])
        chat = MemoisedFormat(tokenizer)
        model = build_policy(
            tokenizer, num_layers=self.num_layers, num_heads=self.num_heads, max_positions=512, seed=self.seed
        )
        judged = self._judged(chat, judge_step)
        biased = self._judged(chat, biased_judge_step) if self.biased else judged
        evaluators = [HindsightReward(chat, prompt=HINDSIGHT_PROMPT, view=view) for view in ("prefix", "full")]
        expert, hasty = (self._play(chat, act, number) for number, act in ((1, _expert), (2, self._hasty)))
        clean = verdict_examples(judged, evaluators, CLEAN_ACCURACY)
        noisy = verdict_examples(biased, evaluators, self.verdict_accuracy)
        phase = functools.partial(Phase, batch_size=self.batch_size, verdict_batch_size=self.verdict_batch_size)
        phases = [
            phase("expert", self.expert_steps, expert.trajectories, clean),
            phase("hasty", self.hasty_steps, hasty.trajectories, noisy, learning_rate=1e-3),
        ]
        warm_start(model, phases, seed=self.seed, progress=progress)
        return model, tokenizer

    def _play(self, chat: MemoisedFormat, act: Act, seed: int, *, judge: Judge | None = None) -> ScriptedEpisodes:
        tasks = webshop.make_tasks("train", self.episodes, seed=seed, **self.env_kwargs)
        return scripted_rollouts(self.environment_factory(), tasks, act, chat, self.limits, seed=seed, judge=judge)

    def _hasty(self, env: Any, rng: random.Random) -> str:
        return hasty_action(env, rng, p_search=self.p_search, p_first=self.p_first, p_skip=self.p_skip)

    def _judged(self, chat: MemoisedFormat, judge: Judge) -> ScriptedEpisodes:
        """Episodes of hasty and of clumsy customers, every step judged."""
        played = [self._play(chat, act, number, judge=judge) for number, act in ((3, self._hasty), (4, _Clumsy()))]
        return ScriptedEpisodes(
            [trajectory for part in played for trajectory in part.trajectories],
            [judged for part in played for judged in part.judged_good],
        )


@dataclass(frozen=True)
class CornerShopRecipe(WebShopRecipe):
    """A dozen products, two on a page: a policy from nothing, and trained, in two minutes; for the notebooks.

    Smaller batches, fewer steps and simpler goals (one attribute) than [`WebShopRecipe`]; for its arguments see there.
    """

    verdict_accuracy: float = 0.8
    p_search: float = 0.6
    p_first: float = 0.6
    p_skip: float = 0.65
    episodes: int = 600
    expert_steps: int = 200
    hasty_steps: int = 40
    num_products: int = 12
    attributes_per_category: int = 4

    num_heads: ClassVar[int] = 2
    batch_size: ClassVar[int] = 16
    verdict_batch_size: ClassVar[int] = 8

    @property
    def env_kwargs(self) -> dict[str, Any]:
        smaller = {
            "num_categories": 3,
            "attributes_per_product": 1,
            "title_attributes": 1,
            "goals_per_product": 24,
            "results_per_page": 2,
            "max_results": 4,
        }
        return {**super().env_kwargs, **smaller}

    def training_defaults(self) -> dict[str, Any]:
        """`MISEConfig` options for this policy: 16 updates of 48 episodes."""
        return {
            **super().training_defaults(),
            "learning_rate": 8e-4,
            "kl_coef": 0.02,
            "per_device_train_batch_size": 24,
            "total_episodes": 48 * 16,
            "local_rollout_forward_batch_size": 64,
            "calibration_batch_size": 16,
            "eval_strategy": "no",
        }


def _expert(env: Any, rng: random.Random) -> str:
    return expert_action(env)


class _Clumsy:
    """A customer who repeats himself, clicks what is not there, and wanders; a judge must have seen such steps."""

    def __init__(self, p_wander: float = 0.1, p_nonsense: float = 0.1, p_repeat: float = 0.1) -> None:
        self._thresholds = (p_wander, p_wander + p_nonsense, p_wander + p_nonsense + p_repeat)
        self._last = ""

    def __call__(self, env: Any, rng: random.Random) -> str:
        wander, nonsense, repeat = self._thresholds
        draw = rng.random()
        if draw < wander and env.state.page != "search":
            return rng.choice(env.admissible_actions())
        if draw < nonsense:
            product = rng.choice(env.shop.catalogue.products)
            return f"click[{rng.choice([product.asin, *product.query.split()])}]"
        if draw < repeat and self._last:
            return self._last
        self._last = hasty_action(env, rng, p_search=0.4, p_first=0.5, p_keep=0.6, p_skip=0.4)
        return self._last
