"""The web shop's reward of a purchase: the official formula."""

from __future__ import annotations  # the catalogue imports this module

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .webshop_catalogue import Goal, Product


def type_reward(bought: Product, wanted: Product) -> float:
    """How far the bought product is of the wanted type: 1, 0.5, 0.1 or 0.

    1 if the products were listed under the same query, or share two levels of their category path, or more than a
    fifth of the nouns of the wanted title; otherwise 0.5. Whatever the rest says, 0.1 for less than a tenth of the
    nouns and 0 for none of them.
    """
    overlap = len(bought.nouns & wanted.nouns) / len(wanted.nouns) if wanted.nouns else 0.2
    return type_band(bought, wanted, overlap)


def type_band(bought: Product, wanted: Product, overlap: float) -> float:
    """The type reward for a share `overlap` of the wanted title's nouns, however the nouns were found."""
    if overlap == 0:
        return 0.0
    if overlap < 0.1:
        return 0.1
    same_path = len(set(bought.category.path) & set(wanted.category.path)) >= 2
    return 1.0 if bought.query == wanted.query or same_path or overlap > 0.2 else 0.5


def purchase_reward(product: Product, options: Mapping[str, str], goal: Goal) -> float:
    r"""Reward of buying `product` with the chosen `options` for `goal`.

        r = r_type * (n_att + n_opt + [price <= upper]) / (|att| + |opt| + 1)     in [0, 1]

    with n_att the goal's attributes that the product has (or that occur in its title, bullets or description) and
    n_opt the goal's option values among the chosen ones. Words are compared as they are, in lower case: the generated
    catalogue does not need the fuzzy matching of the official one.
    """
    text = " ".join((product.title, *product.bullets, product.description)).lower()
    num_attributes = sum(attribute in product.attributes or attribute in text for attribute in goal.attributes)
    chosen = {value.lower() for value in options.values()}
    num_options = sum(value.lower() in chosen for _, value in goal.options)
    matched = num_attributes + num_options + (product.price <= goal.price_upper)
    return type_reward(product, goal.product) * matched / (len(goal.attributes) + len(goal.options) + 1)


def is_full(reward: float) -> bool:
    """A purchase succeeds if and only if everything matches."""
    return abs(reward - 1.0) <= 1e-9


def satisfies(product: Product, goal: Goal) -> bool:
    """True if the product, with the right options chosen, earns the full reward."""
    offered = {value for _, values in product.options for value in values}
    options = {name: value for name, value in goal.options if value in offered}
    return is_full(purchase_reward(product, options, goal))
