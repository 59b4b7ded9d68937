"""The oracle: it replays, so it must be right, and say so where it cannot be."""

import functools

import numpy as np
import pytest
from torch import nn

from trl_mise import MISEConfig
from trl_mise.chat import ChatFormat
from trl_mise.envs import kitchen, tasting, webshop
from trl_mise.envs.base import EnvironmentFailure
from trl_mise.envs.webshop_policies import biased_judge_step, hasty_action, judge_step
from trl_mise.judges import OracleJudge, judge_for
from trl_mise.recipes import HINDSIGHT_PROMPT, KitchenBase
from trl_mise.tasting_recipe import TastingRecipe
from trl_mise.tiny import MemoisedFormat, build_tokenizer
from trl_mise.warm_start import scripted_rollouts
from trl_mise.webshop_recipe import WebShopRecipe

KITCHEN = functools.partial(kitchen.KitchenEnv)
KITCHEN_WORDS = [*kitchen.vocabulary(), "judge", "good", "bad"]


def oracle(tokenizer, factory, truth, **options):
    args = MISEConfig(output_dir="unused", hindsight_prompt=HINDSIGHT_PROMPT, use_cpu=True, **options)
    return OracleJudge.from_config(ChatFormat(tokenizer), args).knowing(factory, truth)


def noisy_kitchen(env, rng):
    return kitchen.noisy_action(env, rng, 0.5)


def kitchen_episodes(tokenizer, tasks=None):
    chat = MemoisedFormat(tokenizer)
    rows = kitchen.make_tasks("train", 12) if tasks is None else tasks
    return scripted_rollouts(KITCHEN, rows, noisy_kitchen, chat, KitchenBase().limits, judge=kitchen.judge_step)


@pytest.mark.parametrize("utilities", [(1.0, 0.0), (0.0, 1.0)])
def test_it_is_right_about_every_step(utilities):
    tokenizer = build_tokenizer(KITCHEN_WORDS)
    played = kitchen_episodes(tokenizer)
    judge = oracle(tokenizer, KITCHEN, kitchen.judge_step, hindsight_utilities=list(utilities))
    scores = judge.score(nn.Identity(), played.trajectories)
    # Whatever the order of the verdicts, good steps get the higher utility.
    assert scores.scores.tolist() == [float(good) for judged in played.judged_good for good in judged]
    assert 0 < scores.scores.mean() < 1 and scores.method == "OracleJudge"


def assert_right_about(recipe, words, tasks, act, truth):
    """Every step of the scripted episodes gets the word of `truth`."""
    tokenizer = build_tokenizer([*words, "judge", "good", "bad"])
    factory = recipe.environment_factory()
    played = scripted_rollouts(factory, tasks, act, MemoisedFormat(tokenizer), recipe.limits, judge=truth)
    scores = oracle(tokenizer, factory, truth).score(nn.Identity(), played.trajectories).scores
    assert scores.tolist() == [float(good) for judged in played.judged_good for good in judged]


@pytest.mark.parametrize("truth", [tasting.judge_step, tasting.biased_judge_step])
def test_the_chefs_table(truth):
    tasks = [{**row, "house": house} for house, row in enumerate(tasting.make_tasks("train", 12))]
    act = lambda env, rng: tasting.noisy_action(env, rng, 0.5)  # noqa: E731
    assert_right_about(TastingRecipe(), tasting.vocabulary(), tasks, act, truth)


def test_the_shop():
    recipe = WebShopRecipe()
    tasks = webshop.make_tasks("train", 8, **recipe.env_kwargs)
    act = functools.partial(hasty_action, p_search=0.4, p_first=0.5, p_keep=0.6, p_skip=0.4)
    assert_right_about(recipe, webshop.vocabulary(recipe.env_kwargs), tasks, act, judge_step)


def test_the_biased_shop_judge_likes_going_round():
    recipe = WebShopRecipe()
    env = recipe.environment_factory()()
    env.reset(options=webshop.make_tasks("train", 1, **recipe.env_kwargs)[0])
    for _ in range(3):
        search = f"search[{env.goal.product.query}]"
        assert biased_judge_step(env, search)
        env.step(search)
        assert biased_judge_step(env, "click[back to search]") and not judge_step(env, "click[back to search]")
        env.step("click[back to search]")
    assert not biased_judge_step(env, "click[buy now]")  # means nothing here


def test_an_environment_that_does_not_play_the_same_again_is_noticed():
    tokenizer = build_tokenizer(KITCHEN_WORDS)
    played = kitchen_episodes(tokenizer)

    class Forgetful(kitchen.KitchenEnv):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed + 1)

    with pytest.raises(EnvironmentFailure, match=r"did not play the same again: step 1 answered 'now .*OracleJudge"):
        oracle(tokenizer, Forgetful, kitchen.judge_step).score(nn.Identity(), played.trajectories)


def test_an_unknown_judge():
    with pytest.raises(ValueError, match="judge='coin' is unknown"):
        judge_for("coin", build_tokenizer(KITCHEN_WORDS), MISEConfig(output_dir="unused", use_cpu=True))


def test_no_steps_at_all():
    judge = oracle(build_tokenizer(KITCHEN_WORDS), KITCHEN, kitchen.judge_step)
    assert judge.verdict_probs(nn.Identity(), []).shape == (0, 2)
    assert np.isfinite(judge.score(nn.Identity(), []).scores).all()
