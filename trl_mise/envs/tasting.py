"""The chef's table: whether a dish pleased is said several courses later. A task for *hindsight*. No dependency."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from .base import EnvironmentFailure
from .kitchen import STATION_WORDS, VALUE_WORDS, favourite_value
from .task_seeds import check_split, chosen_seed, draw_seeds

GUEST_WORDS = ("anna", "boris", "carla", "david", "elena", "felix", "greta", "hugo")
SERVICE_WORDS = ("guest", "now", "done", ".", "liked", "disliked", "paid", "all", "fine", "not")
"""Every other word that the environment says."""


class TastingEnv:
    """A guest is served course by course; each dish is done in one of a few ways, once, and the guest has a taste.

    Every guest likes every dish in exactly one way, the same in all episodes; the text never says which. The
    instruction (`"guest anna"`) names the guest, the observation the dish (`"now grill"`), an action is
    `"<dish> <value>"`. What the guest thinks of a dish is said at some time from `delay` courses later to the bill,
    which nothing announces: `"done . oven disliked . now wok"`. The episode terminates after exactly `courses` steps,
    with reward 1 if every dish was liked, otherwise 0.

    So at the moment of a choice, and right after it, nothing in the episode tells a good one from a bad one (but for
    the last dish), and the finished episode does: a judge that sees only what came before cannot help, one that looks
    back can. Tastes can be learned by heart, from many episodes.

    An action that is not the present dish and a known value is invalid: it is reported as
    `info["action_valid"] = False`, serves the dish in no way that anybody likes, and the episode moves on.

    Args:
        courses (`int`, defaults to 8): dishes, the first so many of `STATION_WORDS`, served in random order.
        values (`int`, defaults to 5): ways to do a dish.
        guests (`int`, defaults to 2): different guests.
        delay (`int`, defaults to 2): least number of courses between a dish and what is said of it, at least 1.
        house (`int`, defaults to 0): whose guests they are; in another house the same names have other tastes. A task
            row's own `"house"` comes first.
        split (`str`, defaults to `"train"`): only names seeds; the tastes to learn are the same.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        courses: int = 8,
        values: int = 5,
        guests: int = 2,
        delay: int = 2,
        house: int = 0,
        split: str = "train",
    ) -> None:
        _check_range("courses", courses, 1, len(STATION_WORDS))
        _check_range("values", values, 2, len(VALUE_WORDS))
        _check_range("guests", guests, 1, len(GUEST_WORDS))
        _check_range("delay", delay, 1, len(STATION_WORDS))
        check_split(split)
        self.dishes, self.values = STATION_WORDS[:courses], VALUE_WORDS[:values]
        self._guests, self._delay = GUEST_WORDS[:guests], delay
        self._default_house = self.house = house
        self.guest = ""
        self._queue: tuple[str, ...] = ()
        self._liked: dict[str, bool] = {}
        self._said_after: dict[str, int] = {}  # dish -> number of courses served by then
        self._rng = random.Random()

    @property
    def dish(self) -> str:
        """The dish that waits to be done."""
        if not self._queue:
            raise EnvironmentFailure("TastingEnv: no episode has been started; call reset() first")
        if len(self._liked) == len(self._queue):
            raise EnvironmentFailure(
                f"TastingEnv: the episode ended after its {len(self._queue)} courses; call reset() before the next "
                "step()"
            )
        return self._queue[len(self._liked)]

    @property
    def wanted(self) -> str:
        """How the guest likes the present dish."""
        return taste(self.house, self.guest, self.dish, len(self.values))

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts the episode of a seed; `options` (the task row) may carry `seed` and `house`."""
        house = (options or {}).get("house")
        self.house = self._default_house if house is None else int(house)
        number = chosen_seed(seed, options)
        self._rng = random.Random(f"tasting-{number}")
        self.guest = self._rng.choice(self._guests)
        self._queue = tuple(self._rng.sample(self.dishes, len(self.dishes)))
        self._liked, last = {}, len(self._queue)
        earliest = (min(course + self._delay, last) for course in range(1, last + 1))
        self._said_after = {
            dish: self._rng.randint(first, last) for dish, first in zip(self._queue, earliest, strict=True)
        }
        return f"now {self.dish}", {"instruction": f"guest {self.guest}", "seed": number, **self._info()}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Serves the present dish.

        Args:
            action (`str`): `"<dish> <value>"`.

        Returns:
            `tuple`: (observation, reward, terminated, truncated, info); `truncated` is always False.

        Raises:
            EnvironmentFailure: there is no episode, or it has ended.
        """
        words = action.split()
        valid = len(words) == 2 and words[0] == self.dish and words[1] in self.values
        self._liked[self.dish] = judge_step(self, action)
        if len(self._liked) < len(self._queue):
            observation = " . ".join(["done", *self._comments(), f"now {self.dish}"])
            return observation, 0.0, False, False, {**self._info(), "action_valid": valid}
        won = all(self._liked.values())
        observation = " . ".join([*self._comments(), "paid", "all fine" if won else "not all fine"])
        return observation, float(won), True, False, {**self._info(), "action_valid": valid, "won": won}

    def close(self) -> None:
        """Nothing to free."""

    def _comments(self) -> list[str]:
        """What the guest says now, in random order."""
        due = [dish for dish, courses in self._said_after.items() if courses == len(self._liked)]
        chosen = self._rng.sample(due, len(due))
        return [f"{dish} {'liked' if self._liked[dish] else 'disliked'}" for dish in chosen]

    def _info(self) -> dict[str, Any]:
        done = len(self._liked) == len(self._queue)
        return {
            "admissible_actions": [] if done else [f"{self.dish} {value}" for value in self.values],
            "score": sum(self._liked.values()) / len(self._queue),
            "max_score": 1.0,
        }


def taste(house: int, guest: str, dish: str, values: int) -> str:
    """The one way in which a guest of a house likes a dish."""
    return VALUE_WORDS[random.Random(f"taste-{house}-{guest}-{dish}").randrange(values)]


def vocabulary(courses: int = 8, values: int = 5, guests: int = 2) -> list[str]:
    """Every word that a `TastingEnv` of these sizes reads or writes, once each, in a fixed order."""
    return [*SERVICE_WORDS, *GUEST_WORDS[:guests], *STATION_WORDS[:courses], *VALUE_WORDS[:values]]


def make_tasks(split: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draws `n` different task rows `{"seed": int}`; rows of the two splits never share a seed."""
    return [{"seed": task_seed} for task_seed in draw_seeds("tasting", split, n, seed)]


def expert_action(env: TastingEnv) -> str:
    """What the guest likes; following it always earns reward 1."""
    return f"{env.dish} {env.wanted}"


def house_style_action(env: TastingEnv) -> str:
    """The same for every guest."""
    return f"{env.dish} {favourite_value(env.dish, len(env.values))}"


def noisy_action(env: TastingEnv, rng: random.Random | np.random.Generator, accuracy: float) -> str:
    """What the guest likes with probability `accuracy`, otherwise one of the other ways."""
    if rng.random() < accuracy:
        return expert_action(env)
    wrong = [value for value in env.values if value != env.wanted]
    return f"{env.dish} {wrong[int(rng.random() * len(wrong))]}"


def judge_step(env: TastingEnv, action: str) -> bool:
    """The perfect judge: will `action`, not yet taken, be liked?"""
    return action.split() == [env.dish, env.wanted]


def biased_judge_step(env: TastingEnv, action: str) -> bool:
    """A biased judge: True if `action` will be liked, or does the dish in the house style, whatever the guest says."""
    return judge_step(env, action) or action.split() == house_style_action(env).split()


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")
