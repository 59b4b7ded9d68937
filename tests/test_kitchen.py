import itertools
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_mise.envs import kitchen
from trl_mise.envs.base import EnvironmentFailure, TextEnv, admissible_actions
from trl_mise.envs.kitchen import KitchenEnv
from trl_mise.envs.task_seeds import SPLITS

GOLDEN_TEXTS = [
    "order : fryer rare , oven rare , grill sweet",
    *("now grill", "grill sweet", "done . now fryer", "fryer rare", "done . now oven", "oven rare"),
    "served . all right",
]
SIZES = [(8, 5), (1, 2), (2, 2), (3, 4), (32, 12)]


def play(env, choose, **reset_arguments):
    """Plays to the end; returns the texts, the rewards and the last info."""
    observation, info = env.reset(**reset_arguments)
    texts, rewards, terminated = [info["instruction"], observation], [], False
    while not terminated:
        action = choose(env)
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        texts += [action, observation]
        rewards.append(reward)
    return texts, rewards, info


def wanted_values(env, seed):
    """The order as told to the agent: {station: value}, in the order of listing."""
    _, info = env.reset(seed=seed)
    head, _, listing = info["instruction"].partition(" : ")
    assert head == "order"
    return dict(entry.split() for entry in listing.split(" , "))


def wrong_action(env):
    return kitchen.noisy_action(env, random.Random(0), accuracy=0.0)


def test_golden_episode():
    # Also pins the draw: orders must not change between versions, or warm starts and results do.
    texts, rewards, info = play(KitchenEnv(stations=3, values=4), kitchen.expert_action, seed=7)
    assert texts == GOLDEN_TEXTS
    assert rewards == [0.0, 0.0, 1.0]
    assert info == {
        "instruction": GOLDEN_TEXTS[0],
        "seed": 7,
        "admissible_actions": [],
        "score": 1.0,
        "max_score": 1.0,
        "action_valid": True,
        "won": True,
    }


@pytest.mark.parametrize(("stations", "values"), SIZES)
@pytest.mark.parametrize("split", SPLITS)
def test_expert_always_wins_with_one_reward_at_the_end(stations, values, split):
    env = KitchenEnv(stations=stations, values=values, split=split)
    for seed in range(20):
        texts, rewards, info = play(env, kitchen.expert_action, seed=seed)
        assert rewards == [0.0] * (stations - 1) + [1.0]
        assert info["won"] is True and info["score"] == 1.0
        assert texts[-1] == "served . all right"


def test_random_agent_hardly_ever_wins():
    env, rng = KitchenEnv(), random.Random(0)
    results = [
        play(env, lambda env: rng.choice([f"{env.station} {v}" for v in env.values]), seed=seed) for seed in range(500)
    ]
    assert sum(sum(rewards) for _, rewards, _ in results) == 0.0  # 5**-8 each
    assert np.mean([info["score"] for _, _, info in results]) == pytest.approx(1 / 5, abs=0.03)


@pytest.mark.parametrize("wrong_at", range(4))
def test_one_wrong_choice_loses_and_shows_only_at_the_end(wrong_at):
    env = KitchenEnv(stations=4)
    right, _, _ = play(env, kitchen.expert_action, seed=3)
    steps = itertools.count()
    texts, rewards, info = play(
        env, lambda env: wrong_action(env) if next(steps) == wrong_at else kitchen.expert_action(env), seed=3
    )
    assert texts[:2] == right[:2] and texts[3:-1:2] == right[3:-1:2]  # no observation before the last tells
    assert texts[-1] == "served . order wrong"
    assert rewards == [0.0] * 4
    assert info["won"] is False and info["score"] == 0.75


def test_info_of_an_episode():
    env = KitchenEnv(stations=2, values=3)
    observation, info = env.reset(seed=0)
    assert isinstance(env, TextEnv)
    assert observation == f"now {env.station}"
    assert info["instruction"] not in observation
    assert (info["score"], info["max_score"]) == (0.0, 1.0) and "won" not in info
    assert admissible_actions(info) == [f"{env.station} {value}" for value in ("rare", "hot", "salty")]
    assert kitchen.expert_action(env) in admissible_actions(info)
    observation, _, _, _, info = env.step(kitchen.expert_action(env))
    assert observation == f"done . now {env.station}"
    assert info["score"] == 0.5 and info["action_valid"] is True and "won" not in info
    assert admissible_actions(info) == [f"{env.station} {value}" for value in ("rare", "hot", "salty")]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda env: "",
        lambda env: env.wanted,
        lambda env: env.station,
        lambda env: f"{env.wanted} {env.station}",
        lambda env: f"{env.station} {env.wanted} {env.wanted}",
        lambda env: f"{env.station} {env.wanted} .",
        lambda env: f"{next(s for s in env.stations if s != env.station)} {env.wanted}",
        lambda env: f"{env.station} {kitchen.VALUE_WORDS[5]}",  # a word of the language, but not one of the 5 values
        lambda env: f"{env.station} {env.wanted}".upper(),
    ],
)
def test_invalid_action_wastes_the_choice(spoil):
    env = KitchenEnv()
    env.reset(seed=1)
    action, station = spoil(env), env.station
    assert kitchen.judge_step(env, action) is False and kitchen.biased_judge_step(env, action) is False
    observation, reward, terminated, truncated, info = env.step(action)
    assert info["action_valid"] is False
    assert (reward, terminated, truncated, info["score"]) == (0.0, False, False, 0.0)
    assert env.station != station and observation == f"done . now {env.station}"
    for _ in range(7):
        observation, reward, terminated, _, info = env.step(kitchen.expert_action(env))
    assert (observation, reward, terminated, info["won"], info["score"]) == (
        *("served . order wrong", 0.0, True, False),
        7 / 8,
    )


def test_blanks_around_words_do_not_matter():
    env = KitchenEnv()
    _, rewards, info = play(env, lambda env: f"  {env.station}\t{env.wanted}\n", seed=0)
    assert rewards[-1] == 1.0 and info["action_valid"] is True


def test_step_needs_a_running_episode():
    env = KitchenEnv(stations=2)
    for use in (env.step, lambda _: kitchen.expert_action(env)):
        with pytest.raises(EnvironmentFailure, match=r"no episode has been started; call reset\(\)"):
            use("grill rare")
    play(env, kitchen.expert_action, seed=11)
    for _ in range(2):
        with pytest.raises(EnvironmentFailure, match=r"seed 11 ended after its 2 stations; call reset\(\)"):
            env.step("grill rare")
    assert play(env, kitchen.expert_action, seed=12)[1] == [0.0, 1.0]
    env.close()
    env.close()


def test_seed_names_the_episode():
    env = KitchenEnv()
    reference = play(env, kitchen.expert_action, seed=5)
    wrong = play(env, wrong_action, seed=5)  # what is played does not change what comes up
    assert wrong[0][:2] == reference[0][:2] and wrong[0][3:-1:2] == reference[0][3:-1:2]
    assert play(KitchenEnv(), kitchen.expert_action, seed=np.int64(5)) == reference
    assert play(env, kitchen.expert_action, options={"seed": 5}) == reference
    assert play(env, kitchen.expert_action, seed=5, options={"seed": 6}) == reference
    assert play(env, kitchen.expert_action, seed=6)[0] != reference[0]


def test_seed_does_not_depend_on_the_process():
    code = "from trl_mise.envs.kitchen import KitchenEnv; print(KitchenEnv().reset(seed=5))"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert process.stdout == f"{KitchenEnv().reset(seed=5)}\n"


def test_reset_without_seed_plays_new_orders_that_can_be_replayed():
    state = random.getstate()
    env, other = KitchenEnv(), KitchenEnv()
    episodes = [env.reset(), env.reset(), other.reset(options={"seed": None})]
    assert random.getstate() == state  # the trainer's own random numbers are left alone
    assert len({info["instruction"] for _, info in episodes}) == 3
    for observation, info in episodes:
        assert KitchenEnv().reset(seed=info["seed"]) == (observation, info)


@pytest.mark.parametrize("seed", ["5", 1.5])
def test_seed_must_be_an_integer(seed):
    with pytest.raises(ValueError, match=f"seed must be an integer, got {seed!r}"):
        KitchenEnv().reset(options={"seed": seed})


@pytest.mark.parametrize(("stations", "values"), [(1, 2), (2, 2), (3, 3)])
def test_splits_share_out_all_orders(stations, values):
    def orders(split):
        env = KitchenEnv(stations=stations, values=values, split=split)
        return {tuple(sorted(wanted_values(env, seed).items())) for seed in range(400)}

    train, test = orders("train"), orders("test")
    assert not train & test
    assert len(train | test) == values**stations
    assert len(test) == values ** (stations - 1)


def test_same_seed_names_different_orders_in_the_two_splits():
    train, test = KitchenEnv(split="train"), KitchenEnv(split="test")
    for seed in range(200):
        assert wanted_values(train, seed) != wanted_values(test, seed)


def test_tasks():
    train, test = kitchen.make_tasks("train", 500), kitchen.make_tasks("test", 500)
    assert all(row["split"] == "train" and 0 <= row["seed"] < 2**30 for row in train)
    assert len({row["seed"] for row in train + test}) == 1000
    assert max(row["seed"] for row in train) < 2**30 <= min(row["seed"] for row in test)
    assert max(row["seed"] for row in test) < 2**31  # fits a signed 32-bit seed
    assert kitchen.make_tasks("train", 500) == train
    assert not {r["seed"] for r in kitchen.make_tasks("train", 500, seed=1)} & {r["seed"] for r in train}
    assert kitchen.make_tasks("test", 0) == []
    with pytest.raises(ValueError, match="split must be one of .*'train', 'test'.*got 'dev'"):
        kitchen.make_tasks("dev", 1)
    with pytest.raises(ValueError, match="n must be .*got -1"):
        kitchen.make_tasks("train", -1)


def test_listing_and_arrival_are_shuffled_apart():
    env = KitchenEnv()
    listed, arrived = [], []
    for seed in range(400):
        listed.append(tuple(wanted_values(env, seed)))
        texts, _, _ = play(env, kitchen.expert_action, seed=seed)
        arrived.append(tuple(text.split()[-1] for text in texts[1:-1:2]))
        assert sorted(listed[-1]) == sorted(arrived[-1]) == sorted(env.stations)
        assert listed[-1] != arrived[-1]
    assert len(set(listed)) > 390 and len(set(arrived)) > 390
    same_place = np.array(listed) == np.array(arrived)
    assert same_place.mean() == pytest.approx(1 / 8, abs=0.03)  # independent of each other


@pytest.mark.parametrize("stations", [2, 3])
def test_arrival_never_repeats_the_listing(stations):
    env = KitchenEnv(stations=stations)
    for seed in range(50):
        listing = list(wanted_values(env, seed))
        texts, _, _ = play(env, kitchen.expert_action, seed=seed)
        assert [text.split()[-1] for text in texts[1:-1:2]] != listing


def test_wanted_values_are_uniform():
    env = KitchenEnv(stations=4, values=5)
    counts = {station: dict.fromkeys(env.values, 0) for station in env.stations}
    for seed in range(1000):
        for station, value in wanted_values(env, seed).items():
            counts[station][value] += 1
    assert all(abs(n - 200) < 60 for per_value in counts.values() for n in per_value.values())


@pytest.mark.parametrize(("stations", "values"), SIZES)
def test_vocabulary_is_exactly_what_is_said(stations, values):
    vocabulary = kitchen.vocabulary(stations, values)
    assert len(set(vocabulary)) == len(vocabulary) == len(kitchen.SERVICE_WORDS) + stations + values
    env, said = KitchenEnv(stations=stations, values=values), set()
    for seed in range(60):
        for choose in (kitchen.expert_action, wrong_action):
            texts, _, _ = play(env, choose, seed=seed)
            assert all(text == text.lower() == " ".join(text.split()) for text in texts)
            said |= {word for text in texts for word in text.split()}
    assert said == set(vocabulary) - ({",", "done"} if stations == 1 else set())


def test_word_lists_are_long_enough():
    assert len(kitchen.STATION_WORDS) >= 32 and len(kitchen.VALUE_WORDS) >= 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stations": 33}, "stations must be between 1 and 32 .*got 33"),
        ({"stations": 0}, "stations must be between 1 and 32 .*got 0"),
        ({"values": 13}, "values must be between 2 .* and 12 .*got 13"),
        ({"values": 1}, "values must be between 2 .*got 1"),
        ({"split": "valid"}, "split must be one of .*got 'valid'"),
    ],
)
def test_bad_constructor_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        KitchenEnv(**arguments)


@pytest.mark.parametrize("make_rng", [random.Random, np.random.default_rng])
@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
def test_noisy_action(make_rng, accuracy):
    env, rng = KitchenEnv(), make_rng(0)
    env.reset(seed=2)
    actions = [kitchen.noisy_action(env, rng, accuracy) for _ in range(2000)]
    shares = {value: actions.count(f"{env.station} {value}") / 2000 for value in env.values}
    assert sum(shares.values()) == pytest.approx(1.0)  # nothing but valid actions
    assert shares.pop(env.wanted) == pytest.approx(accuracy, abs=0.04)
    assert all(share == pytest.approx((1 - accuracy) / 4, abs=0.04) for share in shares.values())


def test_noisy_action_needs_a_probability():
    with pytest.raises(ValueError, match=r"accuracy must be a probability in \[0, 1\], got 1.5"):
        kitchen.noisy_action(KitchenEnv(), random.Random(0), 1.5)


@pytest.mark.parametrize(("stations", "values"), SIZES)
def test_judges(stations, values):
    env, overpraised = KitchenEnv(stations=stations, values=values), 0
    for seed in range(40):
        env.reset(seed=seed)
        for _ in range(stations):
            actions = [f"{env.station} {value}" for value in env.values]
            favourite = f"{env.station} {kitchen.favourite_value(env.station, values)}"
            right = {action for action in actions if kitchen.judge_step(env, action)}
            praised = {action for action in actions if kitchen.biased_judge_step(env, action)}
            assert right == {kitchen.expert_action(env)}
            assert praised == right | {favourite}
            overpraised += len(praised) - 1
            env.step(kitchen.expert_action(env))
    assert overpraised > 0


def test_favourite_values_are_fixed_and_spread():
    assert [kitchen.favourite_value(s) for s in ("grill", "oven", "pot")] == ["rare", "hot", "rare"]
    assert kitchen.favourite_value("pot", values=12) == "mild"
    assert {kitchen.favourite_value(s, 12) for s in kitchen.STATION_WORDS} == set(kitchen.VALUE_WORDS)
    with pytest.raises(ValueError, match="station must be one of .*got 'garage'"):
        kitchen.favourite_value("garage")
    with pytest.raises(ValueError, match="values must be .*got 13"):
        kitchen.favourite_value("grill", 13)


WORDS = st.sampled_from([*kitchen.vocabulary(3, 3), "plain", "Grill", "", "\n"])
ACTIONS = st.one_of(st.text(), st.lists(WORDS, max_size=4).map(" ".join))


@settings(deadline=None)
@given(seed=st.integers(), split=st.sampled_from(SPLITS), actions=st.lists(ACTIONS, min_size=3, max_size=3))
def test_any_text_is_taken_and_the_horizon_is_fixed(seed, split, actions):
    env = KitchenEnv(stations=3, values=3, split=split)
    _, info = env.reset(seed=seed)
    num_right = 0
    for step, action in enumerate(actions, start=1):
        valid = " ".join(action.split()) in admissible_actions(info)
        num_right += kitchen.judge_step(env, action)
        _, reward, terminated, truncated, info = env.step(action)
        assert info["action_valid"] == valid
        assert info["score"] == num_right / 3
        assert (terminated, truncated) == (step == 3, False)
        assert reward == float(terminated and num_right == 3)
    assert info["won"] == (num_right == 3)
