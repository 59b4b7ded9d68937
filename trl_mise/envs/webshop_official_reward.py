"""The official reward of a purchase, for products and goals from the official files."""

from collections.abc import Iterable

from .webshop_catalogue import Goal, Product
from .webshop_matching import COLORS, is_similar, normalize_color
from .webshop_reward import type_band
from .webshop_titles import Nouns


def official_reward(product: Product, chosen: Iterable[str], goal: Goal, nouns: Nouns) -> float:
    r"""Reward of buying `product` with the option values `chosen`.

        r = r_type * (n_att + n_opt + [price <= upper]) / (|att| + |opt| + 1)     in [0, 1]

    with n_att the goal's attributes that are similar to one of the product's (see `is_similar`) or occur in its title,
    bullets or description, and n_opt the goal's options that are similar to a chosen value, colors by their name.

    Args:
        product ([`Product`]): what is bought.
        chosen (`Iterable[str]`): the chosen option values, of whatever option.
        goal ([`Goal`]): what was wanted.
        nouns (callable): nouns of a title, with repetitions; see `find_nouns`.
    """
    values = list(chosen)
    num_attributes = sum(has_attribute(product, attribute) for attribute in goal.attributes)
    num_options = sum(any(option_matches(wanted, value) for value in values) for wanted in goal.options)
    matched = num_attributes + num_options + (product.price <= goal.price_upper)
    total = matched / (len(goal.attributes) + len(goal.options) + 1)
    return total * official_type_reward(product, goal.product, nouns)


def official_type_reward(bought: Product, wanted: Product, nouns: Nouns) -> float:
    """How far the bought product is of the wanted type: 1, 0.5, 0.1 or 0.

    As in the generated shop, but common nouns are a share of all nouns of the wanted title, with repetitions.
    """
    wanted_nouns = nouns(wanted.title)
    common = len(set(nouns(bought.title)) & set(wanted_nouns))
    share = common / len(wanted_nouns) if wanted_nouns else 0.2
    return type_band(bought, wanted, share)


def has_attribute(product: Product, attribute: str) -> bool:
    """True if the product has the attribute, or says so."""
    if any(is_similar(known, attribute) for known in product.attributes):
        return True
    texts = (product.title, " ".join(product.bullets), product.description)
    return any(attribute in text.lower() for text in texts)


def option_matches(wanted: tuple[str, str], value: str) -> bool:
    """True if the chosen `value` is what the goal's option `(name, value)` asks for. The name is "" in human goals."""
    return is_similar(normalize_color(value), _comparable(*wanted))


def _comparable(name: str, value: str) -> str:
    """What the official shop compares a goal's option by.

    Synthetic goals have named options, and there the pair itself is compared: it counts as a color only if its name or
    its value *is* one, and otherwise by the words of both.
    """
    if not name:
        return normalize_color(value)
    return next((color for color in COLORS if color in (name, value)), str((name, value)))
