"""The kitchen order desk: many irrevocable choices, one reward at the very end. No dependency, microseconds a step."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from .base import EnvironmentFailure
from .task_seeds import check_split, chosen_seed, draw_seeds

STATION_WORDS = (
    *("grill", "oven", "fryer", "wok", "pan", "pot", "kettle", "steamer", "smoker", "toaster", "mixer", "blender"),
    *("bowl", "plate", "tray", "rack", "shelf", "fridge", "freezer", "sink", "counter", "knife", "press", "scale"),
    *("ladle", "whisk", "grater", "peeler", "sieve", "funnel", "tongs", "skewer"),
)
VALUE_WORDS = ("rare", "hot", "salty", "sweet", "crisp", "mild", "sour", "soft", "dry", "fresh", "spicy", "plain")
SERVICE_WORDS = ("order", ":", ",", "now", "done", ".", "served", "all", "right", "wrong")
"""Every other word that the environment says."""


class KitchenEnv:
    """An order names one value for each station; the stations come up one at a time, each chosen for once.

    The instruction (`"order : grill rare , oven hot"`, in `info["instruction"]` and never repeated in an observation)
    lists the stations in an order of its own, different from the one in which they come up. The first observation is
    `"now grill"`, later ones `"done . now oven"` whatever was chosen; an action is `"<current station> <value>"`.
    After exactly `stations` steps the episode terminates with `"served . all right"` and reward 1 if every choice was
    right, otherwise with `"served . order wrong"` and reward 0: only there does the outcome show. `info["score"]`, the
    fraction of stations done right so far, is for analysis; no text depends on it.

    An action other than the current station's word followed by a known value (blanks aside) is invalid: it is
    reported as `info["action_valid"] = False`, wastes the station's only choice, which counts as wrong, and the
    episode moves on. So the horizon is fixed whatever the agent writes.

    The splits hold disjoint *orders*, not only disjoint seeds: the indices of the wanted values sum to a multiple of
    `values` in the test split and never in the train split. The same seed therefore names different orders in the
    two splits, and no test order can be met in training.

    Args:
        stations (`int`, defaults to 8): stations per order, the first so many of `STATION_WORDS`.
        values (`int`, defaults to 5): values to choose from, the first so many of `VALUE_WORDS`.
        split (`str`, defaults to `"train"`): `"train"` or `"test"`; a task row's own `"split"` comes first.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, stations: int = 8, values: int = 5, split: str = "train") -> None:
        _check_sizes(stations, values)
        check_split(split)
        self._default_split = self.split = split
        self.stations = STATION_WORDS[:stations]
        self.values = VALUE_WORDS[:values]
        self._wanted: dict[str, str] = {}
        self._queue: tuple[str, ...] = ()
        self._instruction = ""
        self._seed: int | None = None
        self._step = 0
        self._num_right = 0

    @property
    def station(self) -> str:
        """The station that waits for its choice."""
        if not self._queue:
            raise EnvironmentFailure("KitchenEnv: no episode has been started; call reset() first")
        if self._step == len(self._queue):
            raise EnvironmentFailure(
                f"KitchenEnv: the episode of seed {self._seed} ended after its {self._step} stations; call reset() "
                "before the next step()"
            )
        return self._queue[self._step]

    @property
    def wanted(self) -> str:
        """The value that the order names for the current station."""
        return self._wanted[self.station]

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts the order that `seed` names, else the row's own `options["seed"]`, else a random one.

        Returns:
            `tuple[str, dict]`: the first observation and `info`; `info["seed"]` names the order, so that a random
            one can be played again.
        """
        self.split = (options or {}).get("split", self._default_split)
        check_split(self.split)
        self._seed = chosen_seed(seed, options)
        rng = random.Random(
            f"kitchen-{self.split}-{self._seed}"
        )  # a str seed is hashed with SHA-512: no PYTHONHASHSEED
        self._wanted = self._draw_order(rng)
        listed, queue = list(self.stations), list(self.stations)
        rng.shuffle(listed)
        rng.shuffle(queue)
        while len(queue) > 1 and queue == listed:  # else copying the order word by word would do
            rng.shuffle(queue)
        self._queue = tuple(queue)
        self._instruction = "order : " + " , ".join(f"{station} {self._wanted[station]}" for station in listed)
        self._step = self._num_right = 0
        return f"now {self.station}", self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Makes the current station's only choice.

        Args:
            action (`str`): `"<current station> <value>"`.

        Returns:
            `tuple`: (observation, reward, terminated, truncated, info); `truncated` is always False.

        Raises:
            EnvironmentFailure: there is no episode, or it has ended.
        """
        valid = self._parse(action) is not None
        self._num_right += judge_step(self, action)
        self._step += 1
        if self._step < len(self._queue):
            return f"done . now {self.station}", 0.0, False, False, {**self._info(), "action_valid": valid}
        won = self._num_right == len(self._queue)
        observation = "served . all right" if won else "served . order wrong"
        return observation, float(won), True, False, {**self._info(), "action_valid": valid, "won": won}

    def close(self) -> None:
        """Nothing to free."""

    def _draw_order(self, rng: random.Random) -> dict[str, str]:
        """Draws uniformly among this split's orders (a share of 1/values of all orders is the test split's)."""
        while True:
            indices = [rng.randrange(len(self.values)) for _ in self.stations]
            if (sum(indices) % len(self.values) == 0) == (self.split == "test"):
                return {station: self.values[i] for station, i in zip(self.stations, indices, strict=True)}

    def _parse(self, action: str) -> str | None:
        """The value that a valid action chooses, None for an invalid one."""
        words = action.split()
        return words[1] if len(words) == 2 and words[0] == self.station and words[1] in self.values else None

    def _info(self) -> dict[str, Any]:
        done = self._step == len(self._queue)
        return {
            "instruction": self._instruction,
            "seed": self._seed,
            "admissible_actions": [] if done else [f"{self.station} {value}" for value in self.values],
            "score": self._num_right / len(self._queue),
            "max_score": 1.0,
        }


def _check_sizes(stations: int, values: int) -> None:
    if not 1 <= stations <= len(STATION_WORDS):
        raise ValueError(f"stations must be between 1 and {len(STATION_WORDS)} (its words run out), got {stations!r}")
    if not 2 <= values <= len(VALUE_WORDS):
        raise ValueError(
            f"values must be between 2 (fewer leave no choice) and {len(VALUE_WORDS)} (its words run out), "
            f"got {values!r}"
        )


def vocabulary(stations: int = 8, values: int = 5) -> list[str]:
    """Every word that a `KitchenEnv` of these sizes reads or writes, once each, in a fixed order."""
    _check_sizes(stations, values)
    return [*SERVICE_WORDS, *STATION_WORDS[:stations], *VALUE_WORDS[:values]]


def make_tasks(split: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draws `n` different task rows `{"seed": int, "split": split}` for `KitchenEnv`.

    Train seeds lie below 2**30 and test seeds from there to 2**31, so no row can be in both splits. A longer list
    from the same `seed` does not in general start with the shorter one.
    """
    return [{"seed": task_seed, "split": split} for task_seed in draw_seeds("kitchen", split, n, seed)]


def expert_action(env: KitchenEnv) -> str:
    """The right action now; following it always earns reward 1."""
    return f"{env.station} {env.wanted}"


def noisy_action(env: KitchenEnv, rng: random.Random | np.random.Generator, accuracy: float) -> str:
    """The right action with probability `accuracy`, otherwise a uniformly random wrong value of this station."""
    if not 0.0 <= accuracy <= 1.0:
        raise ValueError(f"accuracy must be a probability in [0, 1], got {accuracy!r}")
    if rng.random() < accuracy:
        return expert_action(env)
    wrong = [value for value in env.values if value != env.wanted]
    return f"{env.station} {wrong[int(rng.random() * len(wrong))]}"


def judge_step(env: KitchenEnv, action: str) -> bool:
    """The perfect judge: is `action`, not yet taken, right? (An invalid action is wrong.)"""
    return action.split() == [env.station, env.wanted]


def favourite_value(station: str, values: int = 5) -> str:
    """The value that the biased judge likes to see at `station`, fixed for ever; each value is some stations' one."""
    if station not in STATION_WORDS:
        raise ValueError(f"station must be one of {STATION_WORDS}, got {station!r}")
    _check_sizes(1, values)
    return VALUE_WORDS[STATION_WORDS.index(station) % values]


def biased_judge_step(env: KitchenEnv, action: str) -> bool:
    """A systematically biased judge: True if `action` is right, or chooses the current station's favourite value.

    Its bias is over-praise only: it never blames a right action, but praises a wrong one wherever the order wants
    something else than the favourite, so always choosing favourites pleases it at every step and serves hardly any
    order right.
    """
    return judge_step(env, action) or captured_judge_step(env, action)


def captured_judge_step(env: KitchenEnv, action: str) -> bool:
    """A judge that has been won over: True for the current station's favourite value and for nothing else.

    Orders do not interest it: following it serves hardly any order right, and it blames most right actions.
    """
    return action.split() == [env.station, favourite_value(env.station, len(env.values))]
