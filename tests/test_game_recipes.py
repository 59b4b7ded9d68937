"""The tiny policies of TextWorld and ScienceWorld: their teachers win, their words suffice, training helps them."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trl_mise.envs.plain_words import PlainWords, plain
from trl_mise.game_recipe import GameRecipe
from trl_mise.scienceworld_recipe import ScienceWorldRecipe, animals
from trl_mise.textworld_recipe import COOKBOOK, TextWorldRecipe

ROOT = Path(__file__).parents[1]
RECIPES: dict[str, GameRecipe] = {
    "textworld": TextWorldRecipe(train_tasks=2, eval_tasks=1, repeats=3, expert_steps=2, habit_steps=1),
    "scienceworld": ScienceWorldRecipe(train_tasks=6, eval_tasks=1, repeats=2, expert_steps=2, habit_steps=1),
}


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> GameRecipe:
    pytest.importorskip(request.param, reason=f'needs pip install "trl-mise[{request.param}]"')
    return RECIPES[request.param]


@pytest.fixture
def env(recipe: GameRecipe) -> Iterator[PlainWords]:
    made = recipe.environment_factory()()
    yield made
    made.close()


class Talkative:
    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        return "-= Kitchen =-\n\nA knife; isn't IT sharp?", {"instruction": "Eat, now!", "score": 0.5}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return f"{action}: Done.", 1.0, True, False, {"won": True}

    def close(self) -> None:
        self.closed = True


def test_plain_words() -> None:
    assert plain("-= Kitchen =-\n\nA  twelve-inch knife; isn't IT sharp?") == (
        "- = kitchen = - a twelve-inch knife ; isn't it sharp ?"
    )
    env = PlainWords(Talkative)
    observation, info = env.reset(seed=0)
    assert observation == "- = kitchen = - a knife ; isn't it sharp ?" and env.text.startswith("-= Kitchen")
    assert info == {"instruction": "eat , now !", "score": 0.5}
    assert env.step("Take It") == ("take it : done .", 1.0, True, False, {"won": True})
    env.close()
    assert env.env.closed


def test_animals_are_told_from_furniture() -> None:
    outside = "\n\t".join(
        [
            *("This outside location is called the outside. Here you see: ", "the agent", "a substance called air"),
            *("an axe", "a baby brown bear", "a fire pit (containing nothing)", "a fountain (containing nothing)"),
            *("the ground", "a giant tortoise egg", "a hatchling crocodile", "a shovel", "a substance called wood"),
        ]
    )
    assert animals(outside) == ["baby brown bear", "giant tortoise egg", "hatchling crocodile"]
    assert animals(outside.replace("called the outside", "called the kitchen")) == []


def test_the_teacher_wins(recipe: GameRecipe, env: PlainWords) -> None:
    for held_out in (False, True):
        for row in recipe.make_tasks(held_out):
            env.reset(seed=row["seed"], options=row)
            done = False
            while not done:
                assert len(getattr(env.env, "commands", None) or getattr(env.env, "actions", [])) < 10
                _, reward, terminated, truncated, _ = env.step(recipe.right_action(env))
                done = terminated or truncated
            assert reward == 1.0, row


def test_the_teacher_knows_the_way_back_from_idling(recipe: GameRecipe, env: PlainWords) -> None:
    rng = random.Random(0)
    for row in recipe.make_tasks(held_out=False)[:2]:
        env.reset(seed=row["seed"], options=row)
        done, steps = False, 0
        while not done and steps < 20:
            env.step(recipe.idle_action(env, rng))
            _, reward, terminated, truncated, _ = env.step(recipe.right_action(env))
            done, steps = terminated or truncated, steps + 1
        assert reward == 1.0, row


def test_habits_lose(recipe: GameRecipe, env: PlainWords) -> None:
    """Not always: that is what there is to learn from."""
    rng, rewards = random.Random(0), []
    rows = recipe.make_tasks(held_out=False)
    if isinstance(recipe, TextWorldRecipe):
        rows = TextWorldRecipe(train_tasks=8).make_tasks(held_out=False)
    for row in rows:
        env.reset(seed=row["seed"], options=row)
        done, steps = False, 0
        while not done and steps < 10:
            _, reward, terminated, truncated, _ = env.step(recipe.habitual_action(env, recipe.right_action(env), rng))
            done, steps = terminated or truncated, steps + 1
        rewards.append(reward)
    assert 0 < sum(rewards) < len(rewards)


@pytest.mark.parametrize("name", ["train_tasks", "eval_tasks"])
def test_games_are_needed(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        TextWorldRecipe(**{name: 0})


def test_the_cook_reads_first() -> None:
    pytest.importorskip("textworld", reason='needs pip install "trl-mise[textworld]"')
    recipe = RECIPES["textworld"]
    env = recipe.environment_factory()()
    (row, *_) = recipe.make_tasks(held_out=False)
    env.reset(seed=row["seed"], options=row)
    env.step("inventory")
    assert recipe.right_action(env) == COOKBOOK
    env.step(COOKBOOK)
    assert recipe.right_action(env).startswith("take ")
    env.close()


def test_every_word_is_known(recipe: GameRecipe) -> None:
    """Of its own games: the demonstrations hold no unknown word, and the policy can say all that it was shown."""
    model, tokenizer = recipe.build()
    env = recipe.environment_factory()()
    for row in [*recipe.make_tasks(held_out=False), *recipe.make_tasks(held_out=True)]:
        observation, info = env.reset(seed=row["seed"], options=row)
        texts = [observation, info["instruction"]]
        done = False
        while not done:
            texts.append(recipe.right_action(env))
            observation, _, terminated, truncated, _ = env.step(texts[-1])
            texts.append(observation)
            done = terminated or truncated
        ids = tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) < recipe.limits.max_episode_tokens < model.config.max_position_embeddings
    env.close()


def test_the_same_recipe_builds_the_same_policy() -> None:
    pytest.importorskip("textworld", reason='needs pip install "trl-mise[textworld]"')
    one, other = (RECIPES["textworld"].build()[0].state_dict() for _ in range(2))
    assert all(bool((one[name] == other[name]).all()) for name in one)


def run_example(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)


def test_the_tiny_biologist_knows_one_task(tmp_path: Path) -> None:
    pytest.importorskip("scienceworld", reason='needs pip install "trl-mise[scienceworld]"')
    done = run_example("scienceworld", "--output_dir", str(tmp_path), "--task", "boil")
    assert done.returncode == 2 and "the tiny policy knows 'lifespan-longest-lived' alone" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_example_learns(name: str, tmp_path: Path) -> None:
    """Its sampled success rises; half the default number of updates."""
    pytest.importorskip(name, reason=f'needs pip install "trl-mise[{name}]"')
    done = run_example(name, "--output_dir", str(tmp_path), "--total_episodes", "320", "--seed", "0")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(records) == summary["train_episodes"] == 320
    assert not any(record["stop_reason"] == "env_error" for record in records)
    returns = [record["return"] for record in records]
    assert sum(returns[-96:]) / 96 > sum(returns[:32]) / 32 + 0.1
    assert (tmp_path / "learning_curve.png").is_file() and (tmp_path / "config.json").is_file()
