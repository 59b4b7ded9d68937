"""The tiny cook of `examples/textworld.py`: it can read a recipe, and mostly does not."""

import functools
import random
from dataclasses import dataclass
from typing import Any

from .envs import textworld
from .envs.base import EnvironmentFactory
from .envs.plain_words import PlainWords
from .game_recipe import GameRecipe
from .rollout import RolloutLimits

COOKBOOK = "examine cookbook"
_IDLE = ("inventory", "examine")


@dataclass(frozen=True)
class TextWorldRecipe(GameRecipe):
    """A tiny policy for FTWP's cooking games of one room. It has the habit of cooking everything on the stove.

    Args:
        games (`tuple[str, ...]`): names of games that take turns; see `TextWorldEnv`.
        (the others): see [`GameRecipe`].
    """

    games: tuple[str, ...] = ("tw-cooking-recipe1+take1+cook+go1",)

    @property
    def limits(self) -> RolloutLimits:
        return RolloutLimits(max_turns=10, max_new_tokens=12, max_episode_tokens=768)

    def game_factory(self) -> EnvironmentFactory:
        return functools.partial(textworld.TextWorldEnv, self.games[0])

    def make_tasks(self, held_out: bool) -> list[dict[str, Any]]:
        split, number = ("valid", self.eval_tasks) if held_out else ("train", self.train_tasks)
        return textworld.make_tasks(split, number, seed=self.task_seed, game=self.games)

    def right_action(self, env: PlainWords) -> str:
        """The cookbook first, wherever it can be seen; then TextWorld's own plan."""
        if COOKBOOK not in env.env.commands and COOKBOOK in env.env.admissible_actions():
            return COOKBOOK
        return textworld.expert_action(env.env)

    def habitual_action(self, env: PlainWords, right: str, rng: random.Random) -> str:
        words = right.split(" with ")
        return f"{words[0]} with stove" if right.startswith("cook ") else right

    def idle_action(self, env: PlainWords, rng: random.Random) -> str:
        return rng.choice([action for action in env.env.admissible_actions() if action.startswith(_IDLE)])
