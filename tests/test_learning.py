"""What the defaults promise, on fixed seeds: they learn where the sparse reward cannot, and noise does not.

Kitchen: 8 irrevocable choices of 5, reward 1 only if all are right; 60 updates of 32 episodes. Success is that of the
sampled training episodes; "final" is the mean over the last 10 updates, AUC the mean over all.
"""

from statistics import mean, median
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from benchmarks.learning.runner import make_trainer
from trl_mise import HindsightReward, MISEConfig, MISETrainer
from trl_mise.chat import ChatFormat
from trl_mise.envs import kitchen, tasting, webshop
from trl_mise.judges import judge_for
from trl_mise.metrics import auroc
from trl_mise.recipes import KitchenRecipe, kitchen_recipe
from trl_mise.tasting_recipe import HINDSIGHT_PROMPT, TastingRecipe
from trl_mise.tiny import cached
from trl_mise.warm_start import scripted_rollouts
from trl_mise.webshop_recipe import WebShopRecipe

pytestmark = pytest.mark.slow

FINAL = 10


def train_kitchen(recipe: KitchenRecipe, output_dir: Any, *, seed: int, judge: str = "model", **options: Any) -> Any:
    rows = kitchen.make_tasks("train", 4096, seed=seed)
    return train(recipe, rows, output_dir, seed=seed, judge=judge, **options)


def train(recipe: Any, rows: Any, output_dir: Any, *, seed: int, judge: str = "model", **options: Any) -> Any:
    model, tokenizer = cached(recipe)
    trainer = make_trainer(
        model,
        tokenizer,
        recipe,
        rows,
        judge=lambda args: judge_for(judge, tokenizer, args),
        **{**recipe.training_defaults(), "output_dir": str(output_dir), "seed": seed, **options},
    )
    trainer.train()
    return trainer


def success_curve(trainer: Any) -> list[float]:
    return [entry["env/success"] for entry in trainer.state.log_history if "env/success" in entry]


class TestKitchenHard:
    """Warm start with (nearly) no success: only a judge that knows something gets the run going."""

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_the_warm_start_hardly_ever_succeeds(self, seed, tmp_path):
        trainer = train_kitchen(
            kitchen_recipe("hard", seed=seed),
            tmp_path,
            seed=seed,
            hindsight_coef=0.0,
            learning_rate=0.0,
            total_episodes=512,
        )
        assert mean(success_curve(trainer)) <= 0.01

    def test_default_mise_learns_on_every_seed(self, tmp_path):
        curves = [success_curve(train_kitchen(kitchen_recipe("hard", seed=s), tmp_path, seed=s)) for s in (0, 1, 2)]
        finals = [mean(curve[-FINAL:]) for curve in curves]
        assert min(finals) >= 0.6, finals
        assert median(finals) >= 0.75, finals
        assert min(mean(curve) for curve in curves) >= 0.35, curves

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_the_sparse_reward_alone_does_not(self, seed, tmp_path):
        trainer = train_kitchen(kitchen_recipe("hard", seed=seed), tmp_path, seed=seed, hindsight_coef=0.0)
        assert mean(success_curve(trainer)[-FINAL:]) <= 0.1

    @pytest.mark.parametrize("judge, options", [("random", {"hindsight_patience": 0}), ("flipped", {})])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_neither_do_random_or_flipped_verdicts(self, judge, options, seed, tmp_path):
        trainer = train_kitchen(kitchen_recipe("hard", seed=seed), tmp_path, seed=seed, judge=judge, **options)
        assert mean(success_curve(trainer)[-FINAL:]) <= 0.05

    def test_nor_does_patience_teach_what_random_verdicts_do_not(self, tmp_path):
        """Whom noise leads may come across a success late, from which on the environment leads: hence the AUC."""
        areas = [
            mean(success_curve(train_kitchen(kitchen_recipe("hard", seed=s), tmp_path, seed=s, judge="random")))
            for s in (0, 1, 2)
        ]
        assert mean(areas) <= 0.15, areas


class TestChefsTable:
    """Whether a step was good is said several steps later."""

    @staticmethod
    def verdict_auroc(view: str) -> float:
        """How well the warm-started judge tells good steps from bad ones, in houses that it has never been to."""
        recipe = TastingRecipe()
        model, tokenizer = cached(recipe)
        chat = ChatFormat(tokenizer)
        tasks = [{**row, "house": 1 + i} for i, row in enumerate(tasting.make_tasks("test", 100, seed=1))]
        played = scripted_rollouts(
            recipe.environment_factory(),
            tasks,
            lambda env, rng: tasting.noisy_action(env, rng, 0.5),
            chat,
            recipe.limits,
            judge=tasting.judge_step,
        )
        judge = HindsightReward(chat, prompt=HINDSIGHT_PROMPT, view=view)
        # The answer to the last dish is the bill, and what is said with it; of the others the past tells nothing.
        scores = np.concatenate([s[:-1] for s in judge.score(model, played.trajectories).split()])
        truth = np.array([good for judged in played.judged_good for good in judged[:-1]])
        return auroc(scores, truth)

    def test_only_a_judge_who_looks_back_can_know(self):
        assert self.verdict_auroc("full") > 0.9
        assert 0.4 < self.verdict_auroc("prefix") < 0.6

    @pytest.mark.parametrize("view, learns", [("full", True), ("prefix", False)])
    def test_and_only_with_such_a_judge_the_policy_learns(self, view, learns, tmp_path):
        recipe = TastingRecipe()
        finals = []
        for seed in (0, 1):
            rows = tasting.make_tasks("train", 4096, seed=seed)
            trainer = train(recipe, rows, tmp_path, seed=seed, evaluator_view=view)
            finals.append(mean(success_curve(trainer)[-FINAL:]))
        assert mean(finals) >= 0.25 if learns else mean(finals) <= 0.05, finals


def test_calibration_makes_a_biased_judge_harmless(tmp_path):
    """Near one percent success, with a judge that praises a wrong value of every station: four paired seeds."""
    auc: dict[str, list[float]] = {"mise": [], "sparse": []}
    for seed in range(4):
        recipe = kitchen_recipe("near_one_percent", biased=True, seed=seed)
        auc["mise"].append(mean(success_curve(train_kitchen(recipe, tmp_path, seed=seed))))
        auc["sparse"].append(mean(success_curve(train_kitchen(recipe, tmp_path, seed=seed, hindsight_coef=0.0))))
    assert mean(auc["mise"]) >= mean(auc["sparse"]), auc


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_learns_the_web_shop(seed, tmp_path):
    recipe = WebShopRecipe()
    model, tokenizer = cached(recipe)
    trainer = MISETrainer(
        args=MISEConfig(
            **{**recipe.training_defaults(), "eval_strategy": "no"},
            output_dir=str(tmp_path),
            seed=seed,
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=model,
        train_dataset=Dataset.from_list(webshop.make_tasks("train", 2048, **recipe.env_kwargs)),
        eval_dataset=Dataset.from_list(webshop.make_tasks("test", 104, **recipe.env_kwargs)),
        environment_factory=recipe.environment_factory(),
    )
    before = trainer.evaluate()["eval_success"]
    trainer.train()
    after = trainer.evaluate()["eval_success"]
    assert before <= 0.35
    assert after >= 0.65
