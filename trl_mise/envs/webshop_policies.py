"""Policies that know the web shop from inside: an expert, a hasty demonstrator, and a judge of single steps.

They are for tests and for warm starts; none is seen by the trained policy.
"""

import random

import numpy as np

from .webshop import WebShopEnv
from .webshop_catalogue import Goal, Product, fold
from .webshop_pages import BACK, BUY, NEXT, PREV, Shop, ShopState
from .webshop_reward import is_full

_FAR = 100


def expert_action(env: WebShopEnv) -> str:
    """The next action toward a purchase with full reward, from wherever the customer is now."""
    return _expert(env.shop, env.state, env.goal)


def hasty_action(
    env: WebShopEnv,
    rng: np.random.Generator | random.Random,
    *,
    p_search: float = 0.8,
    p_first: float = 0.9,
    p_keep: float = 1.0,
    p_skip: float = 0.9,
) -> str:
    """A demonstrator in a hurry: the expert's action, unless a habit gets in the way.

    Args:
        env ([`WebShopEnv`]): as it is before the step.
        rng (`np.random.Generator` or `random.Random`): draws the habits, independently at each step.
        p_search (`float`): probability of searching by the category alone.
        p_first (`float`): probability of clicking the first result, whatever it is.
        p_keep (`float`): probability of staying with a product although it does not satisfy the goal.
        p_skip (`float`): probability of buying at once while options are still to be chosen.
    """
    state, goal = env.state, env.goal
    if state.page == "search" and rng.random() < p_search:
        return f"search[{goal.product.query}]"
    if state.page == "results" and state.results and rng.random() < p_first:
        return f"click[{state.shown(env.shop.layout)[0]}]"
    if state.page == "item":
        missing = _missing_options(env.shop, state, goal)
        if missing and rng.random() < p_skip:
            return _click(BUY)
        if not _is_right(env.shop, env.shop.product(state), goal) and rng.random() < p_keep:
            return f"click[{missing[0]}]" if missing else _click(BUY)
    return expert_action(env)


def judge_step(env: WebShopEnv, action: str) -> bool:
    """True if `action` is a good step now: it brings the expert closer to a purchase with full reward.

    Call it *before* `env.step`. Good are a search that shows a right product early, the click on a right product or on
    a missing option, turning the page or going back where nothing right is in sight, and the purchase when everything
    is right; what means nothing here, loops and detours are not.
    """
    following = env.shop.next_state(env.state, action)
    if following is None:
        return False
    return _distance(env.shop, following, env.goal) < _distance(env.shop, env.state, env.goal)


def biased_judge_step(env: WebShopEnv, action: str) -> bool:
    """A judge that praises going round: good steps, and every search and every way back to the search, needed or not.

    Search, back, search, ... pleases it at every step and never buys anything: the trap of tasks whose steps can be
    undone.
    """
    following = env.shop.next_state(env.state, action)
    if following is None:
        return False
    goes_round = env.state.page == "search" or following.page == "search"
    return goes_round or judge_step(env, action)


def _distance(shop: Shop, state: ShopState, goal: Goal) -> int:
    """Steps that the expert needs to a full reward; `_FAR` after a wrong purchase."""
    for steps in range(_FAR):
        if state.page == "done":
            bought = shop.catalogue.purchase_reward(shop.product(state), dict(state.options), goal)
            return steps if is_full(bought) else _FAR
        following = shop.next_state(state, _expert(shop, state, goal))
        assert following is not None, f"the expert's action means nothing on {state}"
        state = following
    return _FAR


def _expert(shop: Shop, state: ShopState, goal: Goal) -> str:
    if state.page == "search":
        return f"search[{_expert_query(shop, goal)}]"
    if state.page == "results":
        return _expert_on_results(shop, state, goal)
    if state.page == "item":
        if not _is_right(shop, shop.product(state), goal):
            return _click(PREV)
        missing = _missing_options(shop, state, goal)
        return f"click[{missing[0]}]" if missing else _click(BUY)
    return _click(PREV)


def _expert_on_results(shop: Shop, state: ShopState, goal: Goal) -> str:
    """Clicks the best result that satisfies the goal, or turns to its page; back to the search where there is none."""
    found = [shop.catalogue.by_asin[asin] for asin in state.results]
    satisfying = (rank for rank, product in enumerate(found) if shop.catalogue.satisfies(product, goal))
    rank = next(satisfying, next((rank for rank, product in enumerate(found) if _is_goals(product, goal)), None))
    if rank is None:
        return _click(BACK)
    page = rank // shop.layout.results_per_page + 1
    if page == state.results_page:
        return f"click[{fold(state.results[rank])}]"
    return _click(NEXT if page > state.results_page else PREV)


def _expert_query(shop: Shop, goal: Goal) -> str:
    """The goal's attributes and category; where that finds nothing right, more words of the goal or of its product."""
    plain = fold(" ".join((*goal.attributes, goal.product.query)))
    options = fold(" ".join((plain, *(value for _, value in goal.options))))
    for query in (plain, options):
        found = shop.catalogue.search(query, shop.layout.max_results)
        if any(shop.catalogue.satisfies(shop.catalogue.by_asin[asin], goal) for asin in found):
            return query
    return goal.product.detailed_query


def _is_right(shop: Shop, product: Product, goal: Goal) -> bool:
    """Worth buying: it satisfies the goal, or it is what the goal was made from.

    In the generated shop the latter always satisfies it; official goals may ask for what no product has.
    """
    return _is_goals(product, goal) or shop.catalogue.satisfies(product, goal)


def _is_goals(product: Product, goal: Goal) -> bool:
    return product.asin == goal.product.asin


def _missing_options(shop: Shop, state: ShopState, goal: Goal) -> list[str]:
    """Values of the goal that the product offers and that are not chosen yet."""
    chosen = dict(state.options)
    wanted = shop.catalogue.choices(shop.product(state), goal)
    return [value for name, value in wanted if chosen.get(name) != value]


def _click(button: str) -> str:
    return f"click[{button.lower()}]"
