"""`WebShopEnv`: the WebShop text simulator without Java or faiss, on a generated catalogue or on the official files.

`python -m trl_mise.envs.webshop --play` lets you shop by hand.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from .webshop_catalogue import (
    GENERATED_SPLITS,
    Catalogue,
    CatalogueSpec,
    Goal,
    ShopCatalogue,
    Split,
    build_catalogue,
    check_split,
)
from .webshop_pages import (
    BACK,
    BUY,
    NEXT,
    PREV,
    SCORE,
    SUB_PAGES,
    THANKS,
    Layout,
    ObservationMode,
    Shop,
    ShopState,
    split_words,
)
from .webshop_reward import is_full

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
    `info["action_valid"]` False. Only `click[buy now]` ends an episode.

    Without `data_dir` the shop is a small generated one. With it, products, instructions, search order and reward are
    the official ones; this needs `pip install "trl-mise[webshop]"`. The differences: the page after the purchase shows
    the score only, the debug searches `<r>`, `<a>`, `<c>`, `<q>` are plain words, and prices are drawn from
    `catalogue_seed`, each on its own, and not from the global generator.

    Args:
        data_dir (`str`, *optional*): folder with the official data files. It must have `items_shuffle*.json`, the
            products. Without `items_ins_v2*.json` products have no attributes: those of a goal count only where the
            product's text has them, and only human goals are possible. Without `items_human_ins.json` goals are
            synthetic. `reviews.json` adds reviews and ratings.
        split (`str`): `"train"`, `"test"` or, with `data_dir`, `"dev"`; their goals are disjoint. A task row's own
            `"split"` comes first, so that one factory serves training and evaluation. Official goals are shuffled by a
            fixed seed; the first 500 are for tests, the next 1,000 for development (of fewer than 3,000 goals a sixth
            and a third).
        items_file, attributes_file (`str`, *optional*): names in `data_dir`, where several files fit.
        human_goals (`bool`, *optional*): instructions that people wrote, or synthetic ones. Default: human ones if
            there are any.
        split_manifest (`str`, *optional*): where the record of the splits (checksums of the files, seeds, goals) is
            written, and compared when it is there already. Default: a file in the user's cache.
        title_tagger (`str` or callable): how nouns in titles are found for the reward, see `find_nouns`: spaCy if a
            model is installed, or a guess.
        num_products (`int`, *optional*): of the generated shop, default 400; with `data_dir` only so many products
            from the start of the file, default all.
        num_categories, attributes_per_category, attributes_per_product, title_attributes, options_per_product,
            values_per_option, goals_per_product (`int`): of the generated shop, see [`CatalogueSpec`].
        catalogue_seed (`int`): seed of generated products and goals, and of official prices that have to be drawn.
        results_per_page (`int`): results on a page.
        max_results (`int`): results of a search in all.
        reward (`str`): `"official"` pays the official reward in [0, 1] of the purchase, `"success"` 1 for a full match
            and otherwise 0.
        observation_mode (`str`): the official formats. `"text"` joins the visible strings by ` [SEP] `, where a chosen
            option does not look different; `"text_rich"` marks buttons and what was clicked.
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
        items_file: str | None = None,
        attributes_file: str | None = None,
        human_goals: bool | None = None,
        split_manifest: str | None = None,
        title_tagger: str | Callable[[str], Iterable[Any]] = "auto",
        num_products: int | None = None,
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
        observation_mode: ObservationMode = "text",
        show_instruction: bool = True,
        max_steps: int | None = None,
    ) -> None:
        _check_choice("reward", reward, get_args(Reward))
        _check_choice("observation_mode", observation_mode, get_args(ObservationMode))
        for name, value in (("results_per_page", results_per_page), ("max_results", max_results)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}; use None for no limit")
        generated = {
            "num_categories": num_categories,
            "attributes_per_category": attributes_per_category,
            "attributes_per_product": attributes_per_product,
            "title_attributes": title_attributes,
            "options_per_product": options_per_product,
            "values_per_option": values_per_option,
            "goals_per_product": goals_per_product,
        }
        files = {"items_file": items_file, "attributes_file": attributes_file, "human_goals": human_goals}
        is_official = data_dir is not None
        self._splits: tuple[Split, ...] = get_args(Split) if is_official else GENERATED_SPLITS
        self._default_split = self.split = check_split(split, self._splits)
        if data_dir is None:
            _refuse({**files, "split_manifest": split_manifest}, "with data_dir= only")
            products = CatalogueSpec.num_products if num_products is None else num_products
            spec = CatalogueSpec(num_products=products, seed=catalogue_seed, **generated)
            catalogue: ShopCatalogue = build_catalogue(spec)
        else:
            changed = {name: value for name, value in generated.items() if value != getattr(CatalogueSpec, name)}
            _refuse(changed, "for the generated shop only; leave out what it is made from, or data_dir=")
            settings = {**files, "num_products": num_products, "seed": catalogue_seed}
            catalogue = _official_catalogue(data_dir, settings, split_manifest, title_tagger)
        layout = Layout(results_per_page, max_results, show_instruction, observation_mode, is_official)
        self.shop = Shop(catalogue, layout)
        self._reward = reward
        self._max_steps = max_steps
        self._rng = np.random.default_rng()
        self._steps: int | None = None  # None until the first reset

    @property
    def goals(self) -> Sequence[Goal]:
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
        self.split = check_split(row.get("split", self._default_split), self._splits)
        goal = row.get("goal")
        draw = self.shop.catalogue.draw_goal
        self.goal = self.goals[draw(self.split, self._rng) if goal is None else self._check_goal(goal)]
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
            bought, options = self.shop.product(self.state), dict(self.state.options)
            self.score = self.shop.catalogue.purchase_reward(bought, options, self.goal)
            reward = self.score if self._reward == "official" else float(is_full(self.score))
        truncated = not terminated and self._max_steps is not None and self._steps >= self._max_steps
        return self._observe(), reward, terminated, truncated, self._info(valid=following is not None)

    def close(self) -> None:
        """Nothing to free: the catalogue is shared."""

    def admissible_actions(self) -> list[str]:
        """Every click of the page; on the search page a search for the whole instruction."""
        if self.state.page == "search":
            return [f"search[{' '.join(self.goal.instruction.split())}]"]  # an action is one line
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


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {known}, got {value!r}")


def _refuse(arguments: Mapping[str, Any], reason: str) -> None:
    given = [f"{name}={value!r}" for name, value in arguments.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)}: {reason}")


def _official_catalogue(
    data_dir: str,
    settings: Mapping[str, Any],
    split_manifest: str | None,
    title_tagger: str | Callable[[str], Iterable[Any]],
) -> ShopCatalogue:
    """The shop of the official files, its splits checked against their manifest."""
    # Here, because the generated shop needs none of it.
    from .webshop_manifest import check_manifest
    from .webshop_official import OfficialCatalogue, load_official
    from .webshop_titles import find_nouns

    data = load_official(data_dir, **settings)
    check_manifest(data, split_manifest)
    return OfficialCatalogue(data, find_nouns(title_tagger))


def make_tasks(split: str, n: int, seed: int = 0, **env_kwargs: Any) -> list[dict[str, Any]]:
    """Dataset rows `{"seed", "goal", "split"}` for `WebShopEnv(**env_kwargs)`.

    Goals come in a shuffled order and repeat only after all of them were used, each time in a new order. Seeds of
    different splits are disjoint.
    """
    num_goals = WebShopEnv(split=split, **env_kwargs).num_goals
    number = get_args(Split).index(split)
    # The split is part of the seed, so that train and test rows are not the same draw of numbers.
    rng = np.random.default_rng((seed, number))
    rounds = [rng.permutation(num_goals) for _ in range(math.ceil(n / num_goals))]
    offset = number * 2**30
    return [
        {"seed": offset + int(rng.integers(2**30)), "goal": int(goal), "split": split}
        for goal in itertools.islice(itertools.chain.from_iterable(rounds), n)
    ]


def vocabulary(env_kwargs: Mapping[str, Any] | None = None) -> list[str]:
    """All words of observations, instructions and actions of both splits, as [`split_words`] cuts them, sorted.

    The shop must be a generated one, with `text` observations.
    """
    shop = WebShopEnv(**dict(env_kwargs or {})).shop
    catalogue = shop.catalogue
    if not isinstance(catalogue, Catalogue) or shop.layout.observation_mode != "text":
        raise ValueError("vocabulary() lists the words of a generated shop with text observations; leave out data_dir")
    texts = itertools.chain(_page_texts(catalogue.spec, shop.layout), _catalogue_texts(catalogue))
    words = {word for text in texts for word in split_words(text)}
    # In actions as they are demonstrated, buttons are in lower case.
    buttons = " ".join((BACK, PREV, NEXT, BUY, *SUB_PAGES)).lower()
    return sorted(words | set(split_words(f"search[ click[ ] {buttons}")))


def _page_texts(spec: CatalogueSpec, layout: Layout) -> Iterator[str]:
    """The texts that do not depend on the product."""
    yield from ("WebShop [SEP] Instruction: Search Page Total results: Rating: N.A. Price: $ No reviews found ( )",)
    yield from (BACK, PREV, NEXT, BUY, *SUB_PAGES, THANKS, SCORE, "0.0 1.0")
    most = min(layout.max_results, spec.num_products)
    yield from (str(number) for number in range(max(most, math.ceil(most / layout.results_per_page)) + 1))
    for parts in range(1, min(2, spec.attributes_per_product) + spec.options_per_product + 2):
        for matched, type_reward in itertools.product(range(parts + 1), (1.0, 0.5, 0.1)):
            yield str(round(type_reward * matched / parts, 2))


def _catalogue_texts(catalogue: Catalogue) -> Iterator[str]:
    for product in catalogue.products:
        yield from (product.asin, product.title, product.description, *product.bullets, f"{product.price:.2f}")
        for name, values in product.options:
            yield from (name, *values)
    for goals in catalogue.goals.values():
        yield from (goal.instruction for goal in goals)


if __name__ == "__main__":
    from .webshop_play import main

    raise SystemExit(main(WebShopEnv, small=SMALL_SHOP))
