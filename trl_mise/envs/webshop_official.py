"""The official web shop's catalogue: products, goals and search from its data files, loaded once per process."""

import functools
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..notices import warn_once
from .webshop_catalogue import Goal, Product, Split, fold
from .webshop_files import ATTRIBUTES, HUMAN, OfficialFiles, find_files, read_array, read_table
from .webshop_goals import GoalList, GoalSource, HumanGoals, SyntheticGoals, split_goals
from .webshop_lucene import LuceneIndex
from .webshop_official_reward import official_reward, option_matches
from .webshop_reward import is_full
from .webshop_titles import Nouns
from .webshop_wares import Category

DEFAULT_PRICE = 100.0

_NOT_IN_PRICES = re.compile(r"[^\d.]")


@dataclass(frozen=True, slots=True)
class OfficialProduct(Product):
    """A product from the official files. Its nouns are left to the title tagger, and `price` is what counts.

    Args:
        price_label (`str`): the price as shown; a range, from which `price` is drawn, is shown as one.
        rating_label (`str`): the average rating as shown.
        review_texts (`tuple`): (title, score, body) of each review.
    """

    price_label: str
    rating_label: str
    review_texts: tuple[tuple[str, str, str], ...]

    @property
    def document(self) -> str:
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options)
        return " ".join((self.title, self.description, *self.bullets[:1], options)).lower()

    @property
    def detailed_query(self) -> str:
        return fold(self.title)

    @property
    def price_tag(self) -> str:
        return self.price_label

    @property
    def rating(self) -> str:
        return self.rating_label

    @property
    def reviews(self) -> tuple[tuple[str, str, str], ...]:
        return self.review_texts


@dataclass(frozen=True)
class OfficialSpec:
    """What an official catalogue is loaded from; equal specs share one catalogue in a process.

    Args:
        files ([`OfficialFiles`]): the data files.
        human_goals (`bool`): instructions of people, or synthetic ones.
        num_products (`int`, *optional*): only so many products from the start of the file (they are shuffled there).
        seed (`int`): seed of prices that are drawn from a range, and of the goals' upper prices.
        stamps (`tuple[tuple[int, int], ...]`): sizes and times of the files, so that changed ones are loaded again.
    """

    files: OfficialFiles
    human_goals: bool
    num_products: int | None
    seed: int
    stamps: tuple[tuple[int, int], ...]


class OfficialData:
    """Products, their index and the goals. Read only: many environments share one."""

    def __init__(self, spec: OfficialSpec) -> None:
        self.spec = spec
        files = spec.files
        table = read_table(files.attributes)
        reviews = {str(entry.get("asin")): entry for entry in read_table(files.reviews, list)}
        self.products = tuple(_read_products(spec, table, reviews))
        self.by_asin: Mapping[str, Product] = {product.asin: product for product in self.products}
        human = spec.human_goals
        self.source: GoalSource = (
            HumanGoals(self.products, read_table(files.human), spec.seed)
            if human
            else SyntheticGoals(self.products, table, spec.seed)
        )
        self.goals: Mapping[Split, GoalList] = split_goals(self.source)
        asins = [product.asin for product in self.products]
        self.index = LuceneIndex(asins, (product.document for product in self.products))


class OfficialCatalogue:
    """The official shop with a way to find nouns in titles; see `webshop_catalogue.Catalogue` for the methods."""

    def __init__(self, data: OfficialData, nouns: Nouns) -> None:
        self.data = data
        self.products: tuple[Product, ...] = data.products
        self.by_asin = data.by_asin
        self.goals = data.goals
        self._nouns = nouns

    def search(self, query: str, limit: int) -> tuple[str, ...]:
        """ASINs of the best products, best first."""
        return tuple(self.products[i].asin for i in self.data.index.rank(query, limit))

    def draw_goal(self, split: Split, rng: np.random.Generator) -> int:
        """Index of a goal of the split, drawn by its weight."""
        return self.goals[split].draw(rng)

    def purchase_reward(self, product: Product, options: Mapping[str, str], goal: Goal) -> float:
        """Reward of buying `product` with the chosen `options`; see [`official_reward`]."""
        return official_reward(product, options.values(), goal, self._nouns)

    def choices(self, product: Product, goal: Goal) -> tuple[tuple[str, str], ...]:
        """The (option, value) pairs to choose: for each option of the goal the closest value that is still free."""
        # By what is clicked: of equal values, the last one is chosen.
        offered = {fold(value): (name, value) for name, values in product.options for value in values}.values()
        chosen: dict[str, str] = {}
        for wanted in goal.options:
            if any(option_matches(wanted, value) for value in chosen.values()):
                continue
            matching = [pair for pair in offered if pair[0] not in chosen and option_matches(wanted, pair[1])]
            exact = [pair for pair in matching if pair[1] == wanted[1].lower()]
            if matching:
                name, value = (exact or matching)[0]
                chosen[name] = value
        return tuple(chosen.items())

    def satisfies(self, product: Product, goal: Goal) -> bool:
        """True if the product, with the right options chosen, earns the full reward."""
        return is_full(self.purchase_reward(product, dict(self.choices(product, goal)), goal))


def load_official(
    data_dir: str,
    *,
    items_file: str | None = None,
    attributes_file: str | None = None,
    human_goals: bool | None = None,
    num_products: int | None = None,
    seed: int = 0,
) -> OfficialData:
    """The data of a folder with official files, loaded once per process; see `WebShopEnv` for the arguments.

    Raises:
        FileNotFoundError: products, or what the goals are made of, are missing.
        ValueError: a file does not hold what it should, or it has to be chosen from several.
    """
    files = find_files(data_dir, items_file, attributes_file)
    if human_goals is None:
        human_goals = files.human is not None
        if not human_goals and files.attributes is not None:
            warn_once(
                f"WebShop: {data_dir!r} has no {HUMAN}, so that goals are synthetic: the instruction of {ATTRIBUTES} "
                "with every choice of options (pass human_goals=False to silence this)"
            )
    if human_goals and files.human is None:
        raise FileNotFoundError(f"human_goals=True needs {HUMAN} in {data_dir!r}; human_goals=False does without")
    if not human_goals and files.attributes is None:
        raise FileNotFoundError(f"synthetic goals need {ATTRIBUTES} in {data_dir!r}; human ones need {HUMAN}")
    if files.attributes is None:
        warn_once(
            f"WebShop: {data_dir!r} has no {ATTRIBUTES}, so that products have no attributes: a wanted attribute "
            "counts only where the product's title, features or description say it; rewards can be lower than official"
        )
    stamps = tuple((stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in files.present))
    return _load(OfficialSpec(files, human_goals, num_products, seed, stamps))


@functools.lru_cache(maxsize=2)
def _load(spec: OfficialSpec) -> OfficialData:
    return OfficialData(spec)


def _read_products(
    spec: OfficialSpec, table: Mapping[str, Any], reviews: Mapping[str, Any]
) -> Iterable[OfficialProduct]:
    """Products in file order: each ASIN once, and none that is no ASIN."""
    seen: set[str] = set()
    categories: dict[tuple[str, str], Category] = {}
    for number, entry in enumerate(read_array(spec.files.items)):
        if spec.num_products is not None and number >= spec.num_products:
            return
        missing = [key for key in ("asin", "name") if not isinstance(entry.get(key), str)]
        if missing:
            raise ValueError(f"{spec.files.items}: product {number} has no text under {missing}; is it an items file?")
        asin = entry["asin"]
        if asin == "nan" or len(asin) > 10 or asin in seen:
            continue
        seen.add(asin)
        key = (str(entry.get("query") or "").lower().strip(), str(entry.get("product_category") or ""))
        if key not in categories:
            levels = tuple(level.strip() for level in key[1].split("\u203a"))
            categories[key] = Category(key[0], levels, (), ())
        known = table.get(asin) or {}
        yield _product(
            entry, categories[key], tuple(known.get("attributes") or ()), reviews.get(asin) or {}, spec.seed
        )


def _product(
    entry: Mapping[str, Any], category: Category, attributes: tuple[str, ...], review: Mapping[str, Any], seed: int
) -> OfficialProduct:
    prices = read_prices(entry.get("pricing"))
    features = entry.get("small_description")
    bullets = features if isinstance(features, list) else [features]
    draw = random.Random(f"{seed} {entry['asin']}")
    return OfficialProduct(
        asin=entry["asin"],
        title=entry["name"],
        category=category,
        nouns=frozenset(),
        attributes=attributes,
        options=read_options(entry.get("customization_options")),
        price=prices[0] if len(prices) == 1 else draw.uniform(*prices),
        description=str(entry.get("full_description") or ""),
        bullets=tuple(str(bullet) for bullet in bullets if bullet is not None),
        price_label=" to ".join(f"${price}" for price in prices),
        rating_label=str(review.get("average_rating", "N.A.")),
        review_texts=tuple(
            (str(each.get("title", "")), str(each.get("score", each.get("stars", ""))), str(each.get("review", "")))
            for each in review.get("reviews") or ()
        ),
    )


def read_prices(pricing: Any) -> tuple[float, ...]:
    """One price, or the two ends of a range, from e.g. `"$12.50"` or `"$12.50$1,300.00"`; 100 where there is none."""
    pieces = (_NOT_IN_PRICES.sub("", piece) for piece in str(pricing or "").split("$")[1:])
    prices = [float(piece) for piece in pieces if re.fullmatch(r"\d+\.?\d*|\.\d+", piece)]
    return tuple(prices[:2]) or (DEFAULT_PRICE,)


def read_options(customization: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Options and their values in lower case, from `{"Color": [{"value": "Navy/Red", ...}, ...]}`."""
    options: dict[str, tuple[str, ...]] = {}
    for name, contents in (customization or {}).items():
        if contents is not None:
            options[name.lower()] = tuple(entry["value"].strip().replace("/", " | ").lower() for entry in contents)
    return tuple(options.items())
