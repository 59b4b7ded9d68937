"""A tiny policy for an environment of one's own: its words, its prior, and what is said where it cannot be made."""

import random
from typing import Any

import pytest
import torch

from trl_mise.evaluation import evaluate
from trl_mise.model_agent import ModelAgent
from trl_mise.tiny_world import TinyWorld


class Echo:
    """Say the word that was said."""

    WORDS = ("red", "blue", "green")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self.wanted = random.Random(seed).choice(self.WORDS)
        return f"say {self.wanted}", {"instruction": "repeat", "admissible_actions": list(self.WORDS)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "over", float(action.strip() == self.wanted), True, False, {}

    def close(self) -> None:
        pass


TASKS = [{"seed": seed} for seed in range(12)]


def world(**options: Any) -> TinyWorld:
    small: dict[str, Any] = {
        "max_turns": 2,
        "max_new_tokens": 3,
        "episodes": 48,
        "clean_steps": 40,
        "noisy_steps": 5,
        "max_episode_tokens": 32,
    }
    return TinyWorld(Echo, TASKS, lambda env: env.wanted, **{**small, **options})


@pytest.fixture(scope="module")
def built() -> tuple[Any, Any]:
    return world().build()


def test_it_knows_every_word_and_plays_better_than_chance(built: tuple[Any, Any]) -> None:
    model, tokenizer = built
    read = tokenizer("say red blue green over repeat judge good bad", add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in read
    result = evaluate(
        ModelAgent(model, tokenizer, max_new_tokens=3), Echo, [{"seed": i} for i in range(60)], max_steps=2
    )
    assert result.success is not None and result.success.low > 1 / 3


def test_the_same_fields_give_the_same_weights_and_another_seed_others(built: tuple[Any, Any]) -> None:
    torch.rand(3)  # nothing of the global random state is in it
    again, other = world().build()[0], world(seed=1).build()[0]
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (built[0], again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_its_options_are_those_of_a_trainer(built: tuple[Any, Any]) -> None:
    from trl_mise import MISEConfig

    config = MISEConfig(output_dir="unused", **world().training_defaults())
    assert (config.max_turns, config.max_new_tokens) == (2, 3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"accuracy": 1.0}, "accuracy must be between 0 and 1, got 1.0"),
        ({"accuracy": 0.0}, "accuracy must be between"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        world(**options)


def test_no_tasks() -> None:
    with pytest.raises(ValueError, match="tasks is empty"):
        TinyWorld(Echo, [], lambda env: env.wanted)


def test_a_player_that_never_wins() -> None:
    loser = TinyWorld(
        Echo, TASKS, lambda env: "purple", max_turns=2, max_new_tokens=3, episodes=4, max_episode_tokens=32
    )
    with pytest.raises(ValueError, match="right_action wins none of 4 episodes; the first ended .* after 'purple'"):
        loser.build()
