"""`WebShopEnv`: the WebShop text simulator on a generated catalogue, without Java, faiss, spaCy or a download."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np

from .webshop_catalogue import CatalogueSpec, Goal, Split, build_catalogue, check_split
from .webshop_pages import BACK, BUY, NEXT, PREV, SCORE, SUB_PAGES, THANKS, Layout, Shop, ShopState, split_words
from .webshop_reward import is_full, purchase_reward

Reward = Literal["official", "success"]

SMALL_SHOP: Mapping[str, Any] = {
    "num_products": 96,
    "num_categories": 6,
    "attributes_per_category": 6,
    "attributes_per_product": 2,
    "options_per_product": 1,
    "goals_per_product": 12,
    "results_per_page": 3,
    "max_results": 9,
}
"""Arguments of a shop for a laptop: every page has at most 80 words, and the vocabulary under 300."""


class WebShopEnv:
    """A customer looks for a product, chooses its options and buys it; the reward comes with the purchase.

    Actions are `search[words]` and `click[target]`, whatever the case and the white space inside the brackets.
    Anything else, and a click on something that is not there, changes nothing: the same observation again, with
    `info["action_valid"]` False. Only `click[buy now]` ends an episode. Observations are the official *text* format:
    the visible strings joined by ` [SEP] `; as there, a chosen option does not look different.

    Args:
        data_dir (`str`, *optional*): folder with the official data files; comes with a later release.
        split (`str`): `"train"` or `"test"`; their goals are disjoint. A task row's own `"split"` comes first, so that
            one factory serves training and evaluation.
        num_products, num_categories, attributes_per_category, attributes_per_product, title_attributes,
            options_per_product, values_per_option, goals_per_product (`int`): see [`CatalogueSpec`].
        catalogue_seed (`int`): seed of products and goals.
        results_per_page (`int`): results on a page.
        max_results (`int`): results of a search in all.
        reward (`str`): `"official"` pays the official reward in [0, 1] of the purchase, `"success"` 1 for a full match
            and otherwise 0.
        show_instruction (`bool`): repeat the instruction on every page (official), or show it on the search page only.
        max_steps (`int`, *optional*): the environment truncates the episode after so many steps.

    `info` has `instruction` (from `reset`), `admissible_actions` (a callable), `score` (the official reward),
    `max_score`, `action_valid`, and, once the purchase is made, `won` (the official reward is 1).
    """

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        split: str = "train",
        num_products: int = CatalogueSpec.num_products,
        num_categories: int = CatalogueSpec.num_categories,
        attributes_per_category: int = CatalogueSpec.attributes_per_category,
        attributes_per_product: int = CatalogueSpec.attributes_per_product,
        title_attributes: int = CatalogueSpec.title_attributes,
        options_per_product: int = CatalogueSpec.options_per_product,
        values_per_option: int = CatalogueSpec.values_per_option,
        goals_per_product: int = CatalogueSpec.goals_per_product,
        catalogue_seed: int = 0,
        results_per_page: int = 10,
        max_results: int = 50,
        reward: Reward = "official",
        show_instruction: bool = True,
        max_steps: int | None = None,
    ) -> None:
        if data_dir is not None:
            raise NotImplementedError(
                f"data_dir={data_dir!r}: the official WebShop files are not supported yet, they come with a later "
                "release; leave data_dir out to use the generated catalogue"
            )
        if reward not in get_args(Reward):
            raise ValueError(f"reward must be one of {get_args(Reward)}, got {reward!r}")
        for name, value in (("results_per_page", results_per_page), ("max_results", max_results)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}; use None for no limit")
        spec = CatalogueSpec(
            num_products=num_products,
            num_categories=num_categories,
            attributes_per_category=attributes_per_category,
            attributes_per_product=attributes_per_product,
            title_attributes=title_attributes,
            options_per_product=options_per_product,
            values_per_option=values_per_option,
            goals_per_product=goals_per_product,
            seed=catalogue_seed,
        )
        self._default_split = self.split = check_split(split)
        self.shop = Shop(build_catalogue(spec), Layout(results_per_page, max_results, show_instruction))
        self._reward = reward
        self._max_steps = max_steps
        self._rng = np.random.default_rng()
        self._steps: int | None = None  # None until the first reset

    @property
    def goals(self) -> tuple[Goal, ...]:
        """Goals of the present split."""
        return self.shop.catalogue.goals[self.split]

    @property
    def num_goals(self) -> int:
        """Goals of this split."""
        return len(self.goals)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Opens the shop for the goal `options["goal"]` (an index into the split's goals) or one drawn from `seed`."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        row = options or {}
        self.split = check_split(row.get("split", self._default_split))
        goal = row.get("goal")
        index = int(self._rng.integers(self.num_goals)) if goal is None else self._check_goal(goal)
        self.goal = self.goals[index]
        self.state = ShopState()
        self.score = 0.0
        self._steps = 0
        return self._observe(), {"instruction": self.goal.instruction, **self._info(valid=True)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Returns (observation, reward, terminated, truncated, info); pays at the purchase only."""
        if self._steps is None:
            raise RuntimeError("WebShopEnv.step was called before reset; call reset() first")
        already_done = self.state.page == "done"
        following = self.shop.next_state(self.state, action)
        self.state = following or self.state
        self._steps += 1
        terminated, reward = self.state.page == "done", 0.0
        if terminated and not already_done:
            self.score = purchase_reward(self.shop.product(self.state), dict(self.state.options), self.goal)
            reward = self.score if self._reward == "official" else float(is_full(self.score))
        truncated = not terminated and self._max_steps is not None and self._steps >= self._max_steps
        return self._observe(), reward, terminated, truncated, self._info(valid=following is not None)

    def close(self) -> None:
        """Nothing to free: the catalogue is shared."""

    def admissible_actions(self) -> list[str]:
        """Every click of the page; on the search page a search for the whole instruction."""
        if self.state.page == "search":
            return [f"search[{self.goal.instruction}]"]
        return [f"click[{target}]" for target in self.shop.clickables(self.state)]

    def _observe(self) -> str:
        return self.shop.render(self.state, self.goal, self.score)

    def _info(self, valid: bool) -> dict[str, Any]:
        info: dict[str, Any] = {
            "admissible_actions": self.admissible_actions,
            "score": self.score,
            "max_score": 1.0,
            "action_valid": valid,
        }
        return {**info, "won": is_full(self.score)} if self.state.page == "done" else info

    def _check_goal(self, goal: Any) -> int:
        if not isinstance(goal, (int, np.integer)) or isinstance(goal, bool) or not 0 <= goal < self.num_goals:
            raise ValueError(
                f'options["goal"] must be an int from 0 to {self.num_goals - 1} (the {self.split} split has '
                f"{self.num_goals} goals), got {goal!r}; make rows with make_tasks({self.split!r}, n, **env_kwargs)"
            )
        return int(goal)


def make_tasks(split: str, n: int, seed: int = 0, **env_kwargs: Any) -> list[dict[str, Any]]:
    """Dataset rows `{"seed", "goal", "split"}` for `WebShopEnv(**env_kwargs)`.

    Goals come in a shuffled order and repeat only after all of them were used, each time in a new order. Seeds of
    different splits are disjoint.
    """
    num_goals = WebShopEnv(split=split, **env_kwargs).num_goals
    # The split is part of the seed, so that train and test rows are not the same draw of numbers.
    rng = np.random.default_rng((seed, get_args(Split).index(check_split(split))))
    rounds = [rng.permutation(num_goals) for _ in range(math.ceil(n / num_goals))]
    offset = get_args(Split).index(check_split(split)) * 2**30
    return [
        {"seed": offset + int(rng.integers(2**30)), "goal": int(goal), "split": split}
        for goal in itertools.islice(itertools.chain.from_iterable(rounds), n)
    ]


def vocabulary(env_kwargs: Mapping[str, Any] | None = None) -> list[str]:
    """All words of observations, instructions and actions of both splits, as [`split_words`] cuts them, sorted."""
    shop = WebShopEnv(**dict(env_kwargs or {})).shop
    texts = itertools.chain(_page_texts(shop), _catalogue_texts(shop))
    words = {word for text in texts for word in split_words(text)}
    # In actions as they are demonstrated, buttons are in lower case.
    buttons = " ".join((BACK, PREV, NEXT, BUY, *SUB_PAGES)).lower()
    return sorted(words | set(split_words(f"search[ click[ ] {buttons}")))


def _page_texts(shop: Shop) -> Iterator[str]:
    """The texts that do not depend on the product."""
    spec, layout = shop.catalogue.spec, shop.layout
    yield from ("WebShop [SEP] Instruction: Search Page Total results: Rating: N.A. Price: $ No reviews found ( )",)
    yield from (BACK, PREV, NEXT, BUY, *SUB_PAGES, THANKS, SCORE, "0.0 1.0")
    most = min(layout.max_results, spec.num_products)
    yield from (str(number) for number in range(max(most, math.ceil(most / layout.results_per_page)) + 1))
    for parts in range(1, min(2, spec.attributes_per_product) + spec.options_per_product + 2):
        for matched, type_reward in itertools.product(range(parts + 1), (1.0, 0.5, 0.1)):
            yield str(round(type_reward * matched / parts, 2))


def _catalogue_texts(shop: Shop) -> Iterator[str]:
    for product in shop.catalogue.products:
        yield from (product.asin, product.title, product.description, *product.bullets, f"{product.price:.2f}")
        for name, values in product.options:
            yield from (name, *values)
    for goals in shop.catalogue.goals.values():
        yield from (goal.instruction for goal in goals)
