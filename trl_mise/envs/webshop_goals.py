"""Goals of the official web shop, human and synthetic, and their splits. Goals are made when they are asked for."""

import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .webshop_catalogue import Goal, Product, Split

SHUFFLE_SEED = 233
"""The official one: with the official files, goals have the official numbers."""
NUM_TEST, NUM_DEV = 500, 1000
"""Sizes of the official splits; the rest is for training."""

_UPPER_PRICES = tuple(10.0 * step for step in range(1, 100))
_NO_LIMIT = 1000000.0


@dataclass(frozen=True, slots=True)
class OfficialGoal(Goal):
    """A goal from the official files. Options of human goals have values only; their names are "".

    Args:
        text (`str`): the instruction.
        name (`str`): the product's ASIN, and the number among the product's goals.
    """

    text: str
    name: str

    @property
    def instruction(self) -> str:
        return self.text


class GoalSource(ABC):
    """Where goals come from. Goal `number` of the product `row` has a number of its own in the order of the products.

    Args:
        products (`Sequence[Product]`): of the shop.
        seed (`int`): of the upper prices; each goal's draw is its own, whatever other goals there are.
    """

    def __init__(self, products: Sequence[Product], seed: int) -> None:
        self.products = products
        self.seed = seed
        self.counts = np.zeros(len(products), dtype=np.int64)  # (P,) goals of each product

    def name(self, row: int, number: int) -> str:
        return f"{self.products[row].asin}-{number}"

    @abstractmethod
    def weight(self, row: int) -> float:
        """How often a goal of this product is drawn, compared with others."""

    @abstractmethod
    def make(self, row: int, number: int) -> OfficialGoal: ...


class HumanGoals(GoalSource):
    """Instructions that people wrote (`items_human_ins.json`); those without attributes are left out."""

    def __init__(self, products: Sequence[Product], table: Mapping[str, Any], seed: int) -> None:
        super().__init__(products, seed)
        self._entries = [
            [entry for entry in table.get(product.asin, ()) if entry.get("instruction_attributes")]
            for product in products
        ]
        self.counts[:] = [len(entries) for entries in self._entries]

    def weight(self, row: int) -> float:
        return 1.0

    def make(self, row: int, number: int) -> OfficialGoal:
        product, entry, name = self.products[row], self._entries[row][number], self.name(row, number)
        upper, price_text = draw_upper_price(product.price, f"{self.seed} {name}")
        options = entry.get("instruction_options") or ()
        values = options.values() if isinstance(options, Mapping) else options
        return OfficialGoal(
            product=product,
            attributes=tuple(entry["instruction_attributes"]),
            options=tuple(("", str(value)) for value in values),
            price_upper=upper,
            text=str(entry["instruction"]).strip(".") + price_text,
            name=name,
        )


class SyntheticGoals(GoalSource):
    """The instruction that comes with a product's attributes (`items_ins_v2*.json`), for each choice of its options.

    As in the official shop, rare attributes are drawn more often, and all goals of a product have one upper price.
    """

    def __init__(self, products: Sequence[Product], table: Mapping[str, Any], seed: int) -> None:
        super().__init__(products, seed)
        self._entries: list[tuple[str, tuple[str, ...]]] = []
        self._goals_with: Counter[str] = Counter()
        for row, product in enumerate(products):
            entry = table.get(product.asin) or {}
            text, attributes = entry.get("instruction"), tuple(entry.get("instruction_attributes") or ())
            self._entries.append((str(text), attributes))
            if text is not None and attributes:
                self.counts[row] = math.prod(len(values) for _, values in product.options)
            for attribute in attributes:
                self._goals_with[attribute] += int(self.counts[row])

    def weight(self, row: int) -> float:
        attributes = self._entries[row][1]
        return sum(1.0 / self._goals_with[attribute] for attribute in attributes) / len(attributes)

    def make(self, row: int, number: int) -> OfficialGoal:
        product, (text, attributes) = self.products[row], self._entries[row]
        upper, price_text = draw_upper_price(product.price, f"{self.seed} {product.asin}")
        options = _combination(product.options, number)
        wanted = ", and ".join(f"{name}: {value}" for name, value in options)
        return OfficialGoal(
            product=product,
            attributes=attributes,
            options=options,
            price_upper=upper,
            text=text + (f" with {wanted}" if wanted else "") + price_text,
            name=self.name(row, number),
        )


class GoalList(Sequence[OfficialGoal]):
    """Some goals of a source, by their numbers; a goal is made anew at each access.

    Args:
        source ([`GoalSource`]): of the goals.
        numbers (`NDArray[np.int64]`): `(G,)` numbers in the source's order.
    """

    def __init__(self, source: GoalSource, numbers: NDArray[np.int64]) -> None:
        self._source = source
        ends = np.cumsum(source.counts)
        self._rows = np.searchsorted(ends, numbers, side="right")  # (G,) products
        self._numbers = numbers - (ends - source.counts)[self._rows]  # (G,) numbers among the product's goals
        known, place = np.unique(self._rows, return_inverse=True)
        weights = np.array([source.weight(int(row)) for row in known])
        self._cumulative = np.cumsum(weights[place.reshape(-1)])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> OfficialGoal: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[OfficialGoal, ...]: ...
    def __getitem__(self, index: int | slice) -> OfficialGoal | tuple[OfficialGoal, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        return self._source.make(int(self._rows[index]), int(self._numbers[index]))

    def names(self) -> list[str]:
        """Names of all goals, without making them."""
        pairs = zip(self._rows.tolist(), self._numbers.tolist(), strict=True)
        return [self._source.name(row, number) for row, number in pairs]

    def draw(self, rng: np.random.Generator) -> int:
        """Index of a goal, drawn by weight."""
        place = np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right")
        return min(int(place), len(self) - 1)


def split_goals(source: GoalSource) -> dict[Split, GoalList]:
    """Shuffles the goals by [`SHUFFLE_SEED`] and then cuts them into test, dev and train, in this order.

    From 3,000 goals on, test has 500 and dev 1,000 as in the official baselines; of fewer, test has a sixth and dev a
    third, rounded down, but at least one.

    Raises:
        ValueError: fewer than three goals.
    """
    total = int(source.counts.sum())
    if total < 3:
        raise ValueError(
            f"the WebShop files give {total} goals for {len(source.products)} products, and three splits need 3; do "
            "the products and the instructions belong together? (raise num_products=, or change human_goals=)"
        )
    numbers = list(range(total))
    # Before the split, and by a generator of its own: a shuffle per worker would leak test goals into training.
    random.Random(SHUFFLE_SEED).shuffle(numbers)
    shuffled = np.asarray(numbers, dtype=np.int64)
    num_test, num_dev = (NUM_TEST, NUM_DEV) if total >= 3000 else (max(1, total // 6), max(1, total // 3))
    test, dev, train = np.split(shuffled, [num_test, num_test + num_dev])
    return {"train": GoalList(source, train), "test": GoalList(source, test), "dev": GoalList(source, dev)}


def draw_upper_price(price: float, seed: str) -> tuple[float, str]:
    """(upper price, its part of the instruction): the larger of two different ones among the next four tens.

    Where fewer than two of 10, 20, ..., 990 are above the price, the goal has no limit.
    """
    above = [upper for upper in _UPPER_PRICES if upper > price][:4]
    if len(above) < 2:
        return _NO_LIMIT, ""
    upper = max(random.Random(seed).sample(above, 2))
    return upper, f", and price lower than {upper:.2f} dollars"


def _combination(options: tuple[tuple[str, tuple[str, ...]], ...], number: int) -> tuple[tuple[str, str], ...]:
    """Choice `number` of one value per option, options sorted by name, the last one changing fastest."""
    chosen = []
    for name, values in sorted(options, reverse=True):
        number, place = divmod(number, len(values))
        chosen.append((name, values[place]))
    return tuple(reversed(chosen))
