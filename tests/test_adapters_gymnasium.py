"""Gymnasium environments behind the contract, and a training step on one."""

import json
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trl_mise.envs.adapters import from_gymnasium
from trl_mise.envs.base import EnvironmentFailure, TextEnv
from trl_mise.envs.check import check_env

gymnasium = pytest.importorskip("gymnasium", reason="Gymnasium is not installed")

HOSTILE = (
    "", " ", "\n", "left\nright", "left. right. left", "save", "restore", "quit", "restart", "reset task",
    "x" * 10_000, "\x00\x1b[2J", "🤣", "<|im_end|>", "left right",
)  # fmt: skip


class Corridor(gymnasium.Env):
    """Fields 0 to 4, start in the middle; the right end wins, the left end loses; four steps at most."""

    metadata: dict[str, Any] = {}

    def __init__(self, start: int = 0, names: bool = True) -> None:
        self.action_space = gymnasium.spaces.Discrete(3, start=start)
        self.observation_space = gymnasium.spaces.Discrete(5)
        self.closed, self.taken = 0, []
        if names:
            self.action_names = ["left", "right", "jump right"]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.options = options
        self.field = int(self.np_random.integers(1, 4)) if options is None or "field" not in options else 2
        self.steps = 0
        return self.field, {"action_mask": self._mask()}

    def _mask(self) -> np.ndarray:
        return np.array([1, 1, self.field <= 2], dtype=np.int8)

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.taken.append(action)
        self.steps += 1
        self.field += (-1, 1, 2)[action - int(self.action_space.start)]
        terminated = self.field in (0, 4)
        info = {"action_mask": self._mask(), "is_success": np.bool_(self.field == 4)}
        return self.field, np.float32(self.field == 4), terminated, not terminated and self.steps >= 4, info

    def close(self) -> None:
        self.closed += 1


class Speech(gymnasium.Env):
    """A text action space; the observation is a dict with one text in it."""

    metadata: dict[str, Any] = {}

    def __init__(self) -> None:
        self.action_space = gymnasium.spaces.Text(min_length=1, max_length=8, charset="abc ")
        self.heard: list[str] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        return {"text": "speak", "volume": 3}, {"instruction": "Say abc."}

    def step(self, action: str) -> tuple[dict[str, Any], int, bool, bool, dict[str, Any]]:
        self.heard.append(action)
        won = action == "abc"
        return {"text": f"heard \ud800{action}", "volume": 3}, int(won), won, False, {"won": won}


def render(field: int) -> str:
    return f"field {field}"


def corridor(**kwargs: Any) -> Any:
    return from_gymnasium(Corridor(**kwargs), render_observation=render)


def test_a_whole_episode() -> None:
    env = corridor()
    assert isinstance(env, TextEnv)
    observation, info = env.reset(seed=3, options={"field": 2, "seed": 3})
    assert observation == "field 2" and env.env.options == {"field": 2, "seed": 3}
    assert info["instruction"] == "Actions: left, right, jump right"
    assert info["admissible_actions"] == ["left", "right", "jump right"]
    assert env.step("right")[:4] == ("field 3", 0.0, False, False)
    observation, reward, terminated, truncated, info = env.step(" RIGHT ")
    assert (observation, reward, terminated, truncated) == ("field 4", 1.0, True, False)
    assert type(reward) is float and type(terminated) is bool
    assert info["won"] is True and info["action_valid"] is True and info["admissible_actions"] == []
    with pytest.raises(EnvironmentFailure, match="Corridor: step.. before reset"):
        env.step("left")
    env.reset(seed=3)
    assert env.env.options is None
    env.close()
    env.close()
    assert env.env.closed == 1


def test_losing_and_truncation() -> None:
    env = corridor()
    env.reset(options={"field": 2})
    env.step("left")
    assert env.step("left")[1:4] == (0.0, True, False)
    assert env.reset(options={"field": 2})[0] == "field 2"
    for action in ("left", "right", "left"):
        assert env.step(action)[2:4] == (False, False)
    observation, reward, terminated, truncated, info = env.step("right")
    assert (reward, terminated, truncated, info["won"]) == (0.0, False, True, False)


def test_the_seed_reaches_the_environment() -> None:
    env = corridor()
    first = [env.reset(seed=seed)[0] for seed in range(12)]
    assert first == [env.reset(seed=seed)[0] for seed in range(12)]
    assert len(set(first)) == 3


@pytest.mark.parametrize("start", [0, 7])
def test_the_mask_is_honoured_and_indices_start_where_the_space_does(start: int) -> None:
    env = corridor(start=start)
    env.reset(options={"field": 2})
    env.step("right")
    observation, reward, terminated, truncated, info = env.step("jump right")
    assert observation == "field 3\n\n'jump right' is no action here. Actions: left, right"
    assert (reward, terminated, truncated, info["action_valid"]) == (0.0, False, False, False)
    assert info["admissible_actions"] == ["left", "right"]
    assert env.step("left")[0] == "field 2" and env.step("jump right")[0] == "field 4"
    assert env.env.taken == [start + 1, start, start + 2]


@pytest.mark.parametrize("action", HOSTILE)
def test_an_unknown_action_takes_no_step(action: str) -> None:
    env = corridor()
    env.reset(options={"field": 2})
    for _ in range(2):
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation.startswith("field 2\n\n") and len(observation) < 200
        assert observation.count("is no action here") == 1
        assert all(char == "\n" or char.isprintable() for char in observation)
        assert (reward, terminated, truncated, info["action_valid"]) == (0.0, False, False, False)
    assert env.env.taken == []
    assert env.step("right")[0] == "field 3"


def test_text_actions() -> None:
    env = from_gymnasium(Speech())
    observation, info = env.reset(seed=1)
    assert observation == "speak" and info["instruction"] == "Say abc." and "admissible_actions" not in info
    for action in ("xyz", "", "a" * 9, "a\nb"):  # charset and length of the space
        observation, _, terminated, _, info = env.step(action)
        assert observation.startswith("speak\n\n") and not terminated and info["action_valid"] is False
    observation, reward, terminated, _, info = env.step("cab")
    assert observation == "heard ?cab"  # half a surrogate pair, which no tokenizer takes
    assert (reward, terminated, info["won"], info["action_valid"]) == (0.0, False, False, True)
    assert env.step("abc")[1:3] == (1.0, True)
    assert env.env.heard == ["cab", "abc"]


def test_names_are_found_behind_wrappers_and_by_method() -> None:
    class Atari(Corridor):
        def get_action_meanings(self) -> list[str]:
            return ["NOOP", "FIRE", "UP"]

    wrapped = gymnasium.wrappers.TimeLimit(Corridor(), 10)
    assert from_gymnasium(wrapped, render_observation=render).reset()[1]["instruction"].endswith("jump right")
    wrapped = gymnasium.wrappers.TimeLimit(Atari(names=False), 10)
    assert from_gymnasium(wrapped, render_observation=render).reset()[1]["instruction"] == "Actions: NOOP, FIRE, UP"
    given = from_gymnasium(wrapped, render_observation=render, action_names=["a", "b", "c"], instruction="Go.")
    assert given.reset()[1]["instruction"] == "Go."
    assert given.step("b")[-1]["action_valid"]


@pytest.mark.parametrize(
    ("env", "kwargs", "message"),
    [
        (Corridor(names=False), {}, "have no names.*action_names="),
        (Corridor(), {"action_names": ["a", "b"]}, "action_names must be 3 str"),
        (Corridor(), {"action_names": ["a", "b", 3]}, "action_names must be 3 str"),
        (Corridor(), {"action_names": ["a", " A", "b"]}, "not distinct"),
        (Speech(), {"action_names": ["a"]}, "the actions of Speech are text"),
    ],
)
def test_wrong_names(env: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_gymnasium(env, **kwargs)


def test_other_spaces_and_observations_are_refused() -> None:
    env = Corridor()
    env.action_space = gymnasium.spaces.Box(0, 1, (2,))
    with pytest.raises(ValueError, match=r"(?s)the actions of Corridor are Box.*ActionWrapper"):
        from_gymnasium(env)
    with pytest.raises(TypeError, match="observation 2 .int.*render_observation="):
        from_gymnasium(Corridor()).reset(options={"field": 2})
    two_texts = Speech()
    two_texts.reset = lambda **kwargs: ({"a": "x", "b": "y"}, {})  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="exactly one text"):
        from_gymnasium(two_texts).reset()
    with pytest.raises(TypeError, match="neither an environment .* nor callable"):
        from_gymnasium(3)


def test_without_gymnasium_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Corridor()
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match="pip install gymnasium"):
        from_gymnasium(env)


def test_the_contract() -> None:
    factory = partial(from_gymnasium, Corridor, render_observation=render)
    check_env(factory)
    check_env(factory, actions=HOSTILE)
    check_env(partial(from_gymnasium, partial(Corridor, start=2), render_observation=render), task={"field": 2})
    check_env(partial(from_gymnasium, Speech), actions=["ab", *HOSTILE, "abc"])


def test_the_factory_can_be_pickled_and_makes_an_environment_for_each_call() -> None:
    factory = pickle.loads(pickle.dumps(partial(from_gymnasium, Corridor, render_observation=render)))
    one, other = factory(), factory()
    assert one.env is not other.env
    registered = partial(
        from_gymnasium,
        partial(gymnasium.make, "FrozenLake-v1", is_slippery=False),
        action_names=["left", "down", "right", "up"],
        render_observation="field {}".format,
    )
    env = pickle.loads(pickle.dumps(registered))()
    env.reset(seed=0)
    for action in ("down", "down", "right", "right", "down", "right"):
        observation, reward, terminated, _, info = env.step(action)
    assert (observation, reward, terminated) == ("field 15", 1.0, True)


def test_a_training_step(tmp_path: Path) -> None:
    """The environment of this file, unchanged, under the trainer."""
    from trainer_fakes import largest_difference, make_trainer, weights

    from trl_mise.tiny import build_tokenizer

    words = ["Actions", "left", "right", "jump", "field", *"01234", "is", "no", "action", "here.", "judge", "step"]
    tokenizer = build_tokenizer([*words, "good", "bad"])
    factory = partial(from_gymnasium, Corridor, render_observation=render)
    trainer = make_trainer(tmp_path, tokenizer=tokenizer, environment_factory=factory, response_length=1)
    before = weights(trainer.actor_critic)
    trainer.train()
    assert largest_difference(before, weights(trainer.actor_critic)) > 1e-3
    lines = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 16
    turns = [turn for line in lines for turn in line["turns"]]
    assert all(turn["observation"].startswith("field ") for turn in turns)
    assert {turn["action_valid"] for turn in turns} == {True, False}  # a policy from scratch does both
    assert {line["stop_reason"] for line in lines} <= {"terminated", "env_truncated", "max_turns"}
