"""A tiny policy for an environment of one's own: its words, its prior, and what is said where it cannot be made."""

import functools
import random
from typing import Any

import numpy as np
import pytest
import torch

from trl_mise.chat import ChatFormat
from trl_mise.evaluation import evaluate
from trl_mise.hindsight import HindsightReward
from trl_mise.metrics import auroc
from trl_mise.model_agent import ModelAgent
from trl_mise.tiny import UNK, build_tokenizer, split_pieces
from trl_mise.tiny_world import HINDSIGHT_PROMPT, TinyWorld, _Stage
from trl_mise.warm_start import ScriptedEpisodes, scripted_rollouts


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


class TwoEchoes:
    """Two colours are named one after the other; each is to be said. A miss says so in a word of its own."""

    COLOURS = ("red", "green", "blue")
    made = 0

    def __init__(self, lists_actions: bool = True) -> None:
        TwoEchoes.made += 1
        self.lists_actions, self.closed = lists_actions, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        assert not self.closed, "it was used again after it had been closed"
        self.wanted = random.Random(seed).choices(self.COLOURS, k=2)
        self.said: list[str] = []
        return f"say {self.wanted[0]}", {"instruction": "be an echo", **self.info()}

    def info(self) -> dict[str, Any]:
        return {"admissible_actions": list(self.COLOURS)} if self.lists_actions else {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.said.append(action)
        if len(self.said) == 1:
            missed = "" if action == self.wanted[0] else "pardon , "
            return f"{missed}say {self.wanted[1]}", 0.0, False, False, self.info()
        won = self.said == self.wanted
        return "the end", float(won), True, False, {**self.info(), "won": won}

    def close(self) -> None:
        self.closed = True


def next_colour(env: Any) -> str:
    return env.wanted[len(env.said)]


def two_echoes(factory: Any = TwoEchoes, **options: Any) -> TinyWorld:
    quick = {"max_turns": 4, "episodes": 12, "clean_steps": 1, "noisy_steps": 1, "max_episode_tokens": 96}
    return TinyWorld(factory, [{"seed": seed} for seed in range(24)], next_colour, **{**quick, **options})


def play(world: TinyWorld, accuracy: float) -> ScriptedEpisodes:
    """Scripted and judged episodes, as the policy is brought up with."""
    stage = _Stage(world.environment_factory)
    chat = ChatFormat(build_tokenizer([*world._words(stage), "judge", "good", "bad"]))
    return world._play(stage, chat, accuracy, judged=True)


@pytest.mark.parametrize("lists_actions", [True, False])
def test_it_knows_words_that_only_a_mistake_brings_up(lists_actions: bool) -> None:
    _, tokenizer = two_echoes(functools.partial(TwoEchoes, lists_actions)).build()
    text = "be an echo say red green blue pardon , say the end judge good bad"
    assert UNK not in tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    assert tokenizer("purple")["input_ids"] == [tokenizer.unk_token_id]


def test_the_noisy_player_is_right_as_often_as_it_was_told() -> None:
    judged = play(two_echoes(episodes=400), 0.6).judged_good
    assert np.mean([good for steps in judged for good in steps]) == pytest.approx(0.6, abs=0.05)


def test_the_flawless_player_always_wins() -> None:
    assert all(trajectory.success for trajectory in play(two_echoes(), 1.0).trajectories)


def test_a_mistake_is_an_admissible_action_and_never_the_right_one() -> None:
    episodes = play(two_echoes(episodes=100), 0.5)
    pairs = zip(episodes.trajectories, episodes.judged_good, strict=True)
    steps = [(turn.action, good) for t, judged in pairs for turn, good in zip(t.turns, judged, strict=True)]
    assert {action for action, good in steps if not good} == set(TwoEchoes.COLOURS)


def test_a_judge_of_ones_own_comes_before_the_player() -> None:
    episodes = play(two_echoes(judge=lambda env, action: action == "red"), 0.5)
    for trajectory, judged in zip(episodes.trajectories, episodes.judged_good, strict=True):
        assert judged == tuple(turn.action == "red" for turn in trajectory.turns)


def test_every_environment_is_made_anew_and_closed_once() -> None:
    TwoEchoes.made = 0
    two_echoes().build()
    assert TwoEchoes.made == 5  # the words in two ways, and three kinds of episodes


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    two_echoes(clean_steps=2, noisy_steps=1).build(lambda *progress: told.append(progress))
    assert told == [("clean", 1, 3), ("clean", 2, 3), ("noisy", 3, 3)]


def test_an_action_that_is_too_long_is_an_error() -> None:
    with pytest.raises(ValueError, match="more than max_new_tokens=1; raise it"):
        two_echoes(max_new_tokens=1).build()


def test_pieces_are_what_the_tokenizer_needs_to_know() -> None:
    text = "search[red lamp] costs $5 (new)"
    tokenizer = build_tokenizer(split_pieces(text))
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == " ".join(split_pieces(text)) == "search[ red lamp ] costs $ 5 ( new )"


@pytest.mark.slow
def test_it_judges_episodes_that_it_has_not_seen() -> None:
    world = two_echoes(episodes=200, clean_steps=200, noisy_steps=60)
    model, tokenizer = world.build()
    chat = ChatFormat(tokenizer)
    played = scripted_rollouts(
        TwoEchoes,
        [{"seed": 1000 + i} for i in range(100)],
        lambda env, rng: rng.choice(TwoEchoes.COLOURS),
        chat,
        world.limits,
        judge=lambda env, action: action == next_colour(env),
    )
    scores = HindsightReward(chat, prompt=HINDSIGHT_PROMPT).score(model, played.trajectories).scores
    assert auroc(scores, np.concatenate(played.judged_good)) > 0.9
