"""The tasks that the arms are compared on: an environment, a warm-started policy, and the PPO settings of all arms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trl_mise.envs import kitchen, tasting, webshop
from trl_mise.envs.webshop_policies import judge_step as shop_judge
from trl_mise.recipes import (
    WARM_STARTS,
    CapturedKitchenRecipe,
    KitchenBase,
    KitchenRecipe,
    WritingKitchenRecipe,
    kitchen_recipe,
)
from trl_mise.tasting_recipe import TastingRecipe
from trl_mise.warm_start import Judge
from trl_mise.webshop_recipe import WebShopRecipe


@dataclass(frozen=True)
class LearningTask:
    """What an arm is tried on.

    Args:
        name (`str`): as on the command line.
        title (`str`): one line for the report.
        recipe: makes the recipe of the warm-started policy of a seed.
        rows: the training rows of a recipe and a seed.
        truth: right or wrong, of a step not yet taken; for the oracle. `None` where nobody knows.
        options: of `MISEConfig`, for all arms alike, beside the recipe's own.
        writing_recipe: makes the recipe of a policy that also learned to write evaluations; for the arms that do.
        family (`str`): the task that "the same" in the title refers to.
    """

    name: str
    title: str
    recipe: Callable[[int], Any]
    rows: Callable[[Any, int], Sequence[Mapping[str, Any]]]
    truth: Judge | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    writing_recipe: Callable[[int], Any] | None = None
    family: str = ""

    @property
    def headline(self) -> str:
        """Of a row in a table of all tasks."""
        return f"{self.family}, {self.title.removeprefix('the same, ')}" if self.family else self.title

    def recipe_for(self, seed: int, *, writes: bool) -> Any:
        """The recipe of a seed, for an arm that has its verdicts written or not."""
        if not writes:
            return self.recipe(seed)
        if self.writing_recipe is None:
            raise ValueError(f"task {self.name!r} has no policy that learned to write evaluations; leave the arm out")
        return self.writing_recipe(seed)


def _kitchen(name: str, title: str, recipe: Callable[[int], KitchenRecipe], family: str = "") -> LearningTask:
    def writing_recipe(seed: int) -> WritingKitchenRecipe:
        return WritingKitchenRecipe(**vars(recipe(seed)))

    return LearningTask(
        name,
        title,
        recipe,
        lambda _, seed: kitchen.make_tasks("train", 4096, seed=seed),
        kitchen.judge_step,
        writing_recipe=writing_recipe,
        family=family,
    )


def _tasting(name: str, title: str, recipe: TastingRecipe) -> LearningTask:
    return LearningTask(
        name,
        title,
        lambda seed: recipe,  # one warm start: what differs between seeds is the training
        lambda _, seed: tasting.make_tasks("train", 4096, seed=seed),
        tasting.judge_step,
        family="chef's table" if recipe.biased else "",
    )


def _shop(name: str, title: str, *, biased: bool) -> LearningTask:
    return LearningTask(
        name,
        title,
        lambda seed: WebShopRecipe(biased=biased),
        lambda recipe, seed: webshop.make_tasks("train", 2048, seed=seed, **recipe.env_kwargs),
        shop_judge,
        {"eval_strategy": "no"},
        family="web shop" if biased else "",
    )


def _long_kitchen(stations: int, seed: int) -> KitchenRecipe:
    base = KitchenBase(stations=stations, full_steps=250 + 100 * (stations // 16))
    return replace(kitchen_recipe("hard", seed=seed), base=base)


def _textworld(seed: int) -> Any:
    from trl_mise.textworld_recipe import TextWorldRecipe  # an optional extra

    return TextWorldRecipe()


_ALL = (
    _kitchen(
        "kitchen", "kitchen, 8 irrevocable choices, hardly any success", lambda seed: kitchen_recipe("hard", seed=seed)
    ),
    _kitchen(
        "kitchen-biased",
        "the same, biased judge",
        lambda seed: kitchen_recipe("hard", biased=True, seed=seed),
        family="kitchen, hardly any success",
    ),
    _kitchen("kitchen-1%", "kitchen, success near 1%", lambda seed: kitchen_recipe("near_one_percent", seed=seed)),
    _kitchen(
        "kitchen-1%-biased",
        "the same, biased judge",
        lambda seed: kitchen_recipe("near_one_percent", biased=True, seed=seed),
        family="kitchen, success near 1%",
    ),
    _kitchen(
        "kitchen-3%-captured",
        "kitchen, success near 3%, judge that praises its favourites alone",
        lambda seed: CapturedKitchenRecipe(seed=seed),
    ),
    _kitchen(
        "kitchen-1%-captured",
        "kitchen, success near 1%, judge that praises its favourites alone",
        lambda seed: CapturedKitchenRecipe(demo_accuracy=WARM_STARTS["near_one_percent"], seed=seed),
    ),
    _kitchen("kitchen-16", "kitchen, 16 choices", lambda seed: _long_kitchen(16, seed)),
    _kitchen("kitchen-32", "kitchen, 32 choices", lambda seed: _long_kitchen(32, seed)),
    _tasting("tasting", "chef's table, 8 courses: seen in hindsight only", TastingRecipe()),
    _tasting("tasting-biased", "the same, biased judge", TastingRecipe(biased=True)),
    _tasting("tasting-16", "chef's table, 16 courses", TastingRecipe(courses=16)),
    _tasting("tasting-32", "chef's table, 32 courses", TastingRecipe(courses=32)),
    _shop("shop", "web shop, steps can be undone", biased=False),
    _shop("shop-biased", "the same, judge that praises going round", biased=True),
    LearningTask(
        "textworld",
        "TextWorld, FTWP cooking games of one room",
        _textworld,
        lambda recipe, seed: recipe.make_tasks(held_out=False),
    ),
)
TASKS: dict[str, LearningTask] = {task.name: task for task in _ALL}
