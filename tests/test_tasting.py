import os
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_mise import check_env
from trl_mise.envs import kitchen, tasting
from trl_mise.envs.base import EnvironmentFailure, TextEnv
from trl_mise.envs.tasting import TastingEnv


def play(env, choose, **reset_arguments):
    """Plays to the end: observations (one more than actions), actions, rewards, last info."""
    observation, info = env.reset(**reset_arguments)
    observations, actions, rewards, terminated = [observation], [], [], False
    while not terminated:
        actions.append(choose(env))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        assert not truncated
        observations.append(observation)
        rewards.append(reward)
    return observations, actions, rewards, info


def noisy(accuracy, seed=0):
    rng = random.Random(seed)
    return lambda env: tasting.noisy_action(env, rng, accuracy)


def comments(text):
    """{dish: liked} as said in an observation."""
    return {dish: word == "liked" for dish, word in re.findall(r"(\w+) (liked|disliked)", text)}


def test_it_keeps_the_contract():
    assert isinstance(TastingEnv(), TextEnv)
    check_env(TastingEnv(), task={"seed": 3})


@pytest.mark.parametrize("courses, guests", [(1, 1), (8, 2), (32, 8)])
def test_the_expert_always_wins_and_a_wrong_dish_loses(courses, guests):
    env = TastingEnv(courses=courses, guests=guests)
    for seed in range(10):
        observations, _, rewards, info = play(env, tasting.expert_action, seed=seed)
        assert sum(rewards) == rewards[-1] == 1.0 and info["won"] and info["score"] == 1.0
        assert observations[-1].endswith("paid . all fine")
    _, _, rewards, info = play(env, noisy(0.0), seed=0)
    assert sum(rewards) == 0.0 and not info["won"] and info["score"] == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 5), st.floats(0, 1))
def test_every_dish_is_spoken_of_once_truly_and_late(seed, courses, delay, accuracy):
    env = TastingEnv(courses=courses, delay=delay)
    truth = {}

    def choose(env):
        action = noisy(accuracy, seed)(env)
        truth[env.dish] = tasting.judge_step(env, action)
        return action

    observations, actions, _, _ = play(env, choose, seed=seed)
    said = {}
    for number, text in enumerate(observations):
        for dish, liked in comments(text).items():
            assert dish not in said and liked == truth[dish]
            served_as = next(i for i, action in enumerate(actions) if action.split()[0] == dish)
            # Observation number `served_as + 1` is the answer to that dish; the bill comes with the last one.
            assert number - (served_as + 1) >= delay or number == len(observations) - 1
            said[dish] = liked
    assert said.keys() == truth.keys()


def test_the_order_of_the_comments_is_not_that_of_the_courses():
    orders = set()
    for seed in range(20):
        observations, actions, _, _ = play(TastingEnv(), noisy(0.5, seed), seed=seed)
        served = [action.split()[0] for action in actions]
        orders.add(tuple(served.index(dish) for text in observations for dish in comments(text)))
    assert len(orders) > 15 and tuple(range(8)) not in orders


def test_the_past_never_tells():
    """Up to the answer to a step, an episode in which it was right reads like one in which it was wrong."""
    env = TastingEnv()
    for wrong_at in range(8):
        script = iter(range(8))

        def choose(env, wrong_at=wrong_at, script=script):
            return noisy(0.0)(env) if next(script) == wrong_at else tasting.expert_action(env)

        right, _, _, _ = play(env, tasting.expert_action, seed=5)
        wrong, _, _, _ = play(env, choose, seed=5)
        if wrong_at < 7:  # with the last dish comes the bill
            assert right[: wrong_at + 2] == wrong[: wrong_at + 2]
        assert right != wrong


def test_tastes_are_those_of_the_house():
    tastes = {
        house: tuple(
            tasting.taste(house, guest, dish, 5) for guest in tasting.GUEST_WORDS for dish in ("grill", "wok")
        )
        for house in range(20)
    }
    assert len(set(tastes.values())) == 20
    env = TastingEnv(house=3)
    env.reset(seed=1)
    assert env.house == 3
    env.reset(seed=1, options={"house": 7})
    assert env.wanted == tasting.taste(7, env.guest, env.dish, 5)
    env.reset(seed=1)
    assert env.house == 3  # a row's own house is forgotten with its episode


def test_the_same_seed_is_the_same_episode_in_another_process():
    script = (
        "from trl_mise.envs.tasting import *; env = TastingEnv(); print(env.reset(seed=11)); "
        "print([env.step(expert_action(env))[0] for _ in range(8)])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(runs) == 1


def test_every_word_is_in_the_vocabulary():
    known = set(tasting.vocabulary(12, 6, 4))
    env = TastingEnv(courses=12, values=6, guests=4)
    for seed in range(30):
        observations, actions, _, _ = play(env, noisy(0.5, seed), seed=seed)
        assert set(" ".join([env.reset(seed=seed)[1]["instruction"], *observations, *actions]).split()) <= known


@pytest.mark.parametrize("action", ["", "grill", "hot grill", "grill hot hot", "grill burnt", "wok hot"])
def test_an_invalid_action_wastes_the_course(action):
    env = TastingEnv(courses=1)  # its only dish is the grill
    env.reset(seed=0)
    observation, reward, terminated, _, info = env.step(action)
    assert terminated and reward == 0.0 and info["action_valid"] is False and "grill disliked" in observation


def test_biased_judge():
    env = TastingEnv()
    env.reset(seed=0)
    style = f"{env.dish} {kitchen.favourite_value(env.dish, 5)}"
    assert tasting.biased_judge_step(env, style) and tasting.biased_judge_step(env, tasting.expert_action(env))
    others = [
        f"{env.dish} {value}"
        for value in env.values
        if f"{env.dish} {value}" not in (style, f"{env.dish} {env.wanted}")
    ]
    assert not any(tasting.biased_judge_step(env, action) for action in others)


def test_tasks_of_the_splits_are_different():
    train, test = tasting.make_tasks("train", 500), tasting.make_tasks("test", 500)
    assert len({row["seed"] for row in train + test}) == 1000
    assert tasting.make_tasks("train", 5, seed=1) == tasting.make_tasks("train", 5, seed=1) != train[:5]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"courses": 0}, "courses must be between 1 and 32, got 0"),
        ({"values": 1}, "values must be between 2 and 12, got 1"),
        ({"guests": 9}, "guests must be between 1 and 8, got 9"),
        ({"delay": 0}, "delay must be between 1 and 32, got 0"),
        ({"split": "dev"}, "split must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TastingEnv(**arguments)


def test_bad_use():
    env = TastingEnv(courses=1)
    with pytest.raises(EnvironmentFailure, match="call reset"):
        env.step("grill hot")
    with pytest.raises(ValueError, match="seed must be an integer, got 'x'"):
        env.reset(seed="x")
    env.reset(seed=0)
    env.step("grill hot")
    with pytest.raises(EnvironmentFailure, match="ended after its 1 courses"):
        env.step("grill hot")
    env.close()
    env.close()
