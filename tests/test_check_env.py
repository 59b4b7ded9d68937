"""`check_env` accepts what keeps the contract and names the clause that is broken."""

import functools

import numpy as np
import pytest

from trl_mise.envs.base import EnvironmentFailure
from trl_mise.envs.check import GARBAGE_ACTIONS, check_env


class Counter:
    """A correct environment: counts steps, random start, ends after five."""

    name = "Counter"

    def __init__(self, length=5):
        self.length = length
        self.closed = 0

    def reset(self, *, seed=None, options=None):
        self.start = int(np.random.default_rng(seed).integers(1000))
        self.row = options
        self.steps = 0
        self.seen = []
        return f"start {self.start}", {"instruction": "count", "admissible_actions": ["up", "down"]}

    def step(self, action):
        self.seen.append(action)
        self.steps += 1
        terminated = self.steps >= self.length
        return f"{self.start} {action[:3]}", np.float32(terminated), np.bool_(terminated), False, {"won": terminated}

    def close(self):
        self.closed += 1


class Broken(Counter):
    """`Counter` with one answer changed by `change(env, method, answer)`."""

    def __init__(self, change, length=5):
        super().__init__(length)
        self.change = change

    def reset(self, **kwargs):
        return self.change(self, "reset", super().reset(**kwargs))

    def step(self, action):
        return self.change(self, "step", super().step(action))


def after(method, function):
    """A change of the answers of `method` alone."""
    return lambda env, name, answer: function(env, answer) if name == method else answer


def swap(index, value):
    return lambda env, answer: (*answer[:index], value, *answer[index + 1 :])


def test_accepts_an_instance_a_class_and_a_factory():
    env = Counter()
    assert check_env(env) is None
    assert env.closed == 2
    check_env(Counter)
    check_env(functools.partial(Counter, 3), steps=2)
    check_env(Counter(1), actions=["a", "b"])


def test_plays_the_actions_with_the_task():
    made = []

    class Recorder(Counter):
        def __init__(self):
            super().__init__(length=50)
            self.rows, self.actions, self.seeds = [], [], []
            made.append(self)

        def reset(self, *, seed=None, options=None):
            self.rows.append(options)
            self.seeds.append(seed)
            return super().reset(seed=seed, options=options)

        def step(self, action):
            self.actions.append(action)
            return super().step(action)

    check_env(Recorder, task={"goal": 3, "seed": 11}, actions=["a", "b", "c"], steps=2)
    first, second = made
    assert first.actions == ["a", "b", "a", "b", *GARBAGE_ACTIONS] and second.actions == ["a", "b"]
    assert all(row == {"goal": 3, "seed": 11} for env in made for row in env.rows)
    assert {seed for env in made for seed in env.seeds} == {11}
    assert {"", "\n"} < set(GARBAGE_ACTIONS) and max(map(len, GARBAGE_ACTIONS)) == 10_000


@pytest.mark.parametrize(
    ("method", "function", "message"),
    [
        ("reset", lambda env, answer: answer[0], r"must return \(observation, info\), got str"),
        ("reset", lambda env, answer: (*answer, 1), r"got a tuple of 3: \(str, dict, int\)"),
        ("reset", swap(0, 5), "observation of type int; return a str"),
        ("reset", swap(1, None), "info of type NoneType; return a dict"),
        ("reset", swap(1, {"instruction": 3}), r"info\['instruction'\]=3 \(int\); make it str"),
        ("reset", swap(1, {"admissible_actions": "up"}), "make it a list of str"),
        ("reset", swap(1, {"admissible_actions": [1, 2]}), "make it a list of str"),
        ("reset", swap(1, {"admissible_actions": lambda needed: []}), "zero-argument callable"),
        ("step", lambda env, answer: answer[:4], "got a tuple of 4.*split the old `done`"),
        ("step", lambda env, answer: list(answer), "got list"),
        ("step", swap(0, b"x"), "observation of type bytes"),
        ("step", swap(1, None), r"reward=None \(NoneType\); return a float"),
        ("step", swap(1, True), r"reward=True \(bool\); return a float"),
        ("step", swap(1, float("nan")), "the reward nan; rewards must be finite"),
        ("step", swap(1, float("-inf")), "the reward -inf"),
        ("step", swap(2, 1), r"terminated=1 \(int\); return a bool"),
        ("step", swap(2, None), r"terminated=None \(NoneType\); return a bool"),
        ("step", swap(3, "no"), r"truncated='no' \(str\); return a bool"),
        ("step", swap(4, []), "info of type list"),
        ("step", swap(4, {"won": 1.0}), r"info\['won'\]=1.0 \(float\)"),
        ("step", swap(4, {"score": "3"}), r"info\['score'\]='3'"),
    ],
)
def test_wrong_answers_are_named(method, function, message):
    with pytest.raises(EnvironmentFailure, match=f"(?s)^Broken: {method}.*{message}"):
        check_env(Broken(after(method, function)))


@pytest.mark.parametrize("method", ["reset", "step", "close"])
def test_missing_method(method):
    class Lacking:
        reset, step, close = Counter.reset, Counter.step, Counter.close

    setattr(Lacking, method, None)
    with pytest.raises(EnvironmentFailure, match=rf"Lacking: has no method {method}\(\)"):
        check_env(Lacking)


def test_reset_signature():
    class Old(Counter):
        def reset(self):
            return super().reset()

    with pytest.raises(EnvironmentFailure, match="raised TypeError.*keywords seed and options"):
        check_env(Old)


def test_unseeded_start():
    class Unseeded(Counter):
        rng = np.random.default_rng(0)

        def reset(self, *, seed=None, options=None):
            observation, info = super().reset(seed=seed, options=options)
            return f"{observation} {self.rng.random()}", info

    with pytest.raises(EnvironmentFailure, match="reset returned .* same seed again; everything random must"):
        check_env(Unseeded())


def test_state_that_survives_reset():
    class Leaky(Counter):
        total = 0

        def step(self, action):
            self.total += 1
            answer = super().step(action)
            return (f"{answer[0]} {self.total}", *answer[1:])

    with pytest.raises(EnvironmentFailure, match="Leaky: step 1, .* reset must forget the last episode"):
        check_env(Leaky)


def test_instances_that_differ():
    made = iter(range(10))

    def factory():
        return Counter(length=4 + next(made))

    with pytest.raises(EnvironmentFailure, match="on a second instance from the factory"):
        check_env(factory)


@pytest.mark.parametrize("bad", GARBAGE_ACTIONS)
def test_garbage_must_not_raise(bad):
    class Picky(Counter):
        def step(self, action):
            if action == bad:
                raise KeyError(action)
            return super().step(action)

    with pytest.raises(EnvironmentFailure, match="raised KeyError.*must change nothing"):
        check_env(Picky(length=3))


def test_close_twice():
    class Once(Counter):
        def close(self):
            super().close()
            if self.closed > 1:
                raise OSError("already closed")

    with pytest.raises(EnvironmentFailure, match="the second close.. raised OSError"):
        check_env(Once())


def test_factories_that_do_not_make_one():
    with pytest.raises(EnvironmentFailure, match="neither an environment .* nor callable"):
        check_env(3)
    with pytest.raises(EnvironmentFailure, match="raised TypeError.*without arguments"):
        check_env(Broken)
