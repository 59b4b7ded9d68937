"""The tiny biologist of `examples/scienceworld.py`: it finds the animals, and then points at any of them."""

import functools
import random
import re
from dataclasses import dataclass
from typing import Any

from .envs import scienceworld
from .envs.base import EnvironmentFactory
from .envs.plain_words import PlainWords
from .game_recipe import GameRecipe
from .rollout import RolloutLimits

TASK = "lifespan-longest-lived"
LOOK = "look around"
_STAGES = ("egg", "hatchling", "baby", "juvenile", "adult")
# The other things outside are no name alone: a fountain contains, a door leads; tools have no stage of life.
_ANIMAL = re.compile(rf"^\s*an? ((?:(?:{'|'.join(_STAGES)}) [a-z ]+)|[a-z ]+ egg)$", re.MULTILINE)


@dataclass(frozen=True)
class ScienceWorldRecipe(GameRecipe):
    """A tiny policy for ScienceWorld's task of the longest-lived animal. It has the habit of choosing any animal.

    Args:
        simplifications (`str`): see `ScienceWorldEnv`; doors must be open.
        (the others): see [`GameRecipe`].
    """

    train_tasks: int = 62
    eval_tasks: int = 31
    repeats: int = 2
    simplifications: str = "easy"

    @property
    def limits(self) -> RolloutLimits:
        return RolloutLimits(max_turns=10, max_new_tokens=10, max_episode_tokens=768)

    def game_factory(self) -> EnvironmentFactory:
        return functools.partial(scienceworld.ScienceWorldEnv, TASK, simplifications=self.simplifications)

    def make_tasks(self, held_out: bool) -> list[dict[str, Any]]:
        split, number = ("dev", self.eval_tasks) if held_out else ("train", self.train_tasks)
        return scienceworld.make_tasks(
            split, number, seed=self.task_seed, task=TASK, simplifications=self.simplifications
        )

    def right_action(self, env: PlainWords) -> str:
        """The gold path, without its opened doors and with a look at what there is to choose from."""
        *ahead, focus = (action for action in env.env.gold_path() if action.startswith(("go", "focus")))
        for action in env.env.actions:
            if ahead and action == ahead[0]:
                del ahead[0]
        if ahead:
            return ahead[0]
        seen = animals(env.text)
        # The path says "egg parrot", and "baby baby wolf"; and eggs hatch.
        longest_lived = [name for name in seen if set(_kind(name)) <= set(focus.split())]
        return f"focus on {longest_lived[0]}" if longest_lived else LOOK

    def habitual_action(self, env: PlainWords, right: str, rng: random.Random) -> str:
        return f"focus on {rng.choice(animals(env.text))}" if right.startswith("focus") else right

    def idle_action(self, env: PlainWords, rng: random.Random) -> str:
        return rng.choice([LOOK, "inventory"])


def animals(text: str) -> list[str]:
    """Animals and their eggs, as a description of the place outside names them."""
    return _ANIMAL.findall(text) if "called the outside" in text else []


def _kind(name: str) -> list[str]:
    return [word for word in name.split() if word not in _STAGES]
