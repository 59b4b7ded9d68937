"""The web shop's generated catalogue: products, goals and their split, all drawn from one seed."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import numpy as np

from .webshop_reward import purchase_reward, satisfies
from .webshop_search import BM25Index
from .webshop_wares import BRANDS, CATEGORIES, Category

Split = Literal["train", "test", "dev"]
GENERATED_SPLITS: tuple[Split, ...] = ("train", "test")
"""Splits of the generated shop; only the official one has goals for development."""

TEST_FRACTION = 0.2
_PRICES = range(10, 90, 5)
_MARGINS = (5, 10)
_SPLIT_SEED = 20260411
# Share of the products of a category that are made from another one by changing only one thing.
_NEAR_DUPLICATE = 0.5


def fold(text: str) -> str:
    """Lower case, with single spaces: how texts are compared with what is clicked."""
    return " ".join(text.lower().split())


@dataclass(frozen=True, slots=True)
class Product:
    """One product of the shop; `nouns` are the words of the title that name its type (official: tagged by spaCy)."""

    asin: str
    title: str
    category: Category
    nouns: frozenset[str]
    attributes: tuple[str, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]
    price: float
    description: str
    bullets: tuple[str, ...]

    @property
    def query(self) -> str:
        """The search under which the product was listed."""
        return self.category.name

    @property
    def document(self) -> str:
        """The text that the search index sees: title, description, first bullet, options."""
        values = (value for _, choices in self.options for value in choices)
        return " ".join((self.title, self.description, *self.bullets[:1], *values))

    @property
    def detailed_query(self) -> str:
        """A search that should find this very product."""
        return self.document.replace(",", "")

    @property
    def price_tag(self) -> str:
        """The price as pages show it."""
        return f"${self.price:.2f}"

    @property
    def rating(self) -> str:
        """The average rating as pages show it."""
        return "N.A."

    @property
    def reviews(self) -> tuple[tuple[str, str, str], ...]:
        """(title, score, text) of each review."""
        return ()

    def find_option(self, target: str) -> tuple[str, str] | None:
        """The (option, value) that a click on `target` chooses; of equal values the last, as in the official shop."""
        pairs = [(name, value) for name, choices in self.options for value in choices if fold(value) == fold(target)]
        return pairs[-1] if pairs else None

    def option_name(self, value: str) -> str | None:
        """The option that `value` belongs to; None where the product does not offer it."""
        return next((name for name, choices in self.options if value in choices), None)


@dataclass(frozen=True, slots=True)
class Goal:
    """What the customer wants. `product` is the one that the goal was made from; others may satisfy it as well."""

    product: Product
    attributes: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    price_upper: float

    @property
    def instruction(self) -> str:
        options = ", and ".join(f"{name}: {value}" for name, value in self.options)
        wanted = f"find me {' '.join(self.attributes)} {self.product.query}" + (f" with {options}" if options else "")
        return f"{wanted}, and price lower than {self.price_upper:.2f} dollars"


@dataclass(frozen=True)
class CatalogueSpec:
    """Everything that the catalogue is made from; equal specs give the same catalogue.

    Args:
        num_products (`int`): products, spread evenly over the categories.
        num_categories (`int`): at most 12.
        attributes_per_category (`int`): attribute words of a category, at most 8.
        attributes_per_product (`int`): attributes of a product. All are in its features, the first
            `title_attributes` also in its title.
        title_attributes (`int`): attributes in the title.
        options_per_product (`int`): options of a product, 0 to 2.
        values_per_option (`int`): values that a product offers per option, out of 4.
        goals_per_product (`int`): goals drawn per product; those with an instruction that exists already are dropped.
        seed (`int`): seed of the draw (`catalogue_seed` of the environment).
    """

    num_products: int = 400
    num_categories: int = 12
    attributes_per_category: int = 8
    attributes_per_product: int = 3
    title_attributes: int = 2
    options_per_product: int = 2
    values_per_option: int = 3
    goals_per_product: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "num_categories": (1, len(CATEGORIES)),
            "num_products": (self.num_categories, 9999),
            "attributes_per_category": (2, 8),
            "attributes_per_product": (1, self.attributes_per_category),
            "title_attributes": (0, self.attributes_per_product),
            "options_per_product": (0, 2),
            "values_per_option": (1, 4),
            "goals_per_product": (1, 100),
            "seed": (0, 2**63 - 1),
        }
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), bounds[field.name]
            if not low <= value <= high:
                raise ValueError(f"{field.name} must be between {low} and {high}, got {value}; change {field.name}=")


class ShopCatalogue(Protocol):
    """What pages and policies need of a catalogue, generated or official; see [`Catalogue`]."""

    @property
    def products(self) -> tuple[Product, ...]: ...
    @property
    def by_asin(self) -> Mapping[str, Product]: ...
    @property
    def goals(self) -> Mapping[Split, Sequence[Goal]]: ...
    def search(self, query: str, limit: int) -> tuple[str, ...]: ...
    def draw_goal(self, split: Split, rng: np.random.Generator) -> int: ...
    def purchase_reward(self, product: Product, options: Mapping[str, str], goal: Goal) -> float: ...
    def choices(self, product: Product, goal: Goal) -> tuple[tuple[str, str], ...]: ...
    def satisfies(self, product: Product, goal: Goal) -> bool: ...


class Catalogue:
    """Products, their search index, and the goals of each split. Read only: many environments share one."""

    def __init__(self, spec: CatalogueSpec) -> None:
        rng = np.random.default_rng(spec.seed)
        self.spec = spec
        self.products = _make_products(spec, rng)
        self.by_asin = {product.asin: product for product in self.products}
        self.index = BM25Index([product.document for product in self.products])
        goals = _make_goals(self.products, spec.goals_per_product, rng)
        # Shuffled once, by a seed of its own, before the split: a shuffle per worker would leak test goals.
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(goals))
        shuffled = [goals[i] for i in order]
        num_test = max(1, round(TEST_FRACTION * len(shuffled)))
        self.goals: Mapping[Split, tuple[Goal, ...]] = {
            "test": tuple(shuffled[:num_test]),
            "train": tuple(shuffled[num_test:]),
        }

    def search(self, query: str, limit: int) -> tuple[str, ...]:
        """ASINs of the best products, best first."""
        return tuple(self.products[i].asin for i in self.index.rank(query, limit))

    def draw_goal(self, split: Split, rng: np.random.Generator) -> int:
        """Index of a goal of the split."""
        return int(rng.integers(len(self.goals[split])))

    def purchase_reward(self, product: Product, options: Mapping[str, str], goal: Goal) -> float:
        """Reward of buying `product` with the chosen `options`."""
        return purchase_reward(product, options, goal)

    def choices(self, product: Product, goal: Goal) -> tuple[tuple[str, str], ...]:
        """The (option, value) pairs of the goal that the product offers."""
        return tuple((name, value) for name, value in goal.options if product.option_name(value))

    def satisfies(self, product: Product, goal: Goal) -> bool:
        """True if the product, with the right options chosen, earns the full reward."""
        return satisfies(product, goal)


@functools.lru_cache(maxsize=8)
def build_catalogue(spec: CatalogueSpec) -> Catalogue:
    """The catalogue of `spec`, built once per process."""
    return Catalogue(spec)


def check_split(split: str, known: tuple[Split, ...] = GENERATED_SPLITS) -> Split:
    """Refuses a split that does not exist."""
    for name in known:
        if split == name:
            return name
    hint = "; the generated shop has no dev split, the official files have" if split == "dev" else ""
    raise ValueError(f"split must be one of {known}, got {split!r}{hint}")


def _make_products(spec: CatalogueSpec, rng: np.random.Generator) -> tuple[Product, ...]:
    asins = rng.permutation(spec.num_products)  # an ASIN says nothing about the product
    products: list[Product] = []
    originals: dict[str, list[Product]] = {}
    for number in range(spec.num_products):
        category = CATEGORIES[number % spec.num_categories]
        siblings = originals.setdefault(category.name, [])
        attributes = _draw(rng, category.attributes[: spec.attributes_per_category], spec.attributes_per_product)
        price = int(rng.choice(_PRICES))
        is_duplicate = bool(siblings) and rng.random() < _NEAR_DUPLICATE
        if is_duplicate:
            twin = siblings[rng.integers(len(siblings))]
            if rng.random() < 0.5:  # same attributes, another price
                attributes = twin.attributes
            else:  # one attribute differs, same price
                attributes, price = (*twin.attributes[:-1], _other(rng, category, twin, spec)), int(twin.price)
        options = tuple(
            (name, _draw(rng, values, spec.values_per_option))
            for name, values in category.options[: spec.options_per_product]
        )
        asin = f"b{asins[number]:04d}"
        products.append(_product(asin, category, str(rng.choice(BRANDS)), attributes, options, price, spec))
        if not is_duplicate:
            siblings.append(products[-1])
    return tuple(products)


def _product(
    asin: str,
    category: Category,
    brand: str,
    attributes: tuple[str, ...],
    options: tuple[tuple[str, tuple[str, ...]], ...],
    price: int,
    spec: CatalogueSpec,
) -> Product:
    return Product(
        asin=asin,
        title=" ".join((brand, *attributes[: spec.title_attributes], category.name)),
        category=category,
        nouns=frozenset({category.name}),
        attributes=attributes,
        options=options,
        price=float(price),
        description=f"{category.name} made by {brand}",
        bullets=(", ".join(attributes), "free returns"),
    )


def _other(rng: np.random.Generator, category: Category, twin: Product, spec: CatalogueSpec) -> str:
    """An attribute for the last place of `twin`'s, new to it where the category has one left."""
    words = category.attributes[: spec.attributes_per_category]
    rest = [word for word in words if word not in twin.attributes]
    return str(rng.choice(rest)) if rest else twin.attributes[-1]


def _draw(rng: np.random.Generator, words: tuple[str, ...], number: int) -> tuple[str, ...]:
    """`number` different words in the order of `words`, so that equal choices look equal."""
    return tuple(words[i] for i in sorted(rng.choice(len(words), size=number, replace=False)))


def _make_goals(products: tuple[Product, ...], goals_per_product: int, rng: np.random.Generator) -> list[Goal]:
    """A few goals per product, no two with the same instruction: splits would share them."""
    goals: dict[str, Goal] = {}
    for product in products:
        for _ in range(goals_per_product):
            attributes = _draw(rng, product.attributes, int(rng.integers(1, min(2, len(product.attributes)) + 1)))
            number = int(rng.integers(0, len(product.options) + 1))
            chosen = sorted(rng.choice(len(product.options), size=number, replace=False)) if number else []
            options = tuple((product.options[i][0], str(rng.choice(product.options[i][1]))) for i in chosen)
            goal = Goal(product, attributes, options, product.price + float(rng.choice(_MARGINS)))
            goals.setdefault(goal.instruction, goal)
    return list(goals.values())
