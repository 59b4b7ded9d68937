"""The web shop's pages: what a page shows, what can be clicked on it, and where an action leads. Pure functions."""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from .webshop_catalogue import Catalogue, Goal, Product

SEP = " [SEP] "
BACK, PREV, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")
THANKS, SCORE = "Thank you for shopping with us!", "Your score (min 0.0, max 1.0)"

Page = Literal["search", "results", "item", "sub_page", "done"]

_ACTION = re.compile(r"(search|click)\[(.*)\]", re.IGNORECASE)
_WORD = re.compile(r"\[SEP\]|search\[|click\[|[\[\](),:$?.]|[^\s\[\](),:$?.]+")


def split_words(text: str) -> list[str]:
    """Cuts a page or an action into the words of the tiny tokenizer: white space separates, `[](),:$?.` stand alone,
    `[SEP]`, `search[` and `click[` are one word each."""
    return _WORD.findall(text)


def parse_action(action: str) -> tuple[str, str] | None:
    """`("search" | "click", argument)` in lower case, white space folded; None for anything else.

    The folding makes `click[ buy now ]` the same as `click[Buy Now]`: word-level tokenizers put spaces there.
    """
    match = _ACTION.fullmatch(action.strip())
    argument = " ".join(match[2].lower().split()) if match else ""
    return (match[1].lower(), argument) if match and argument else None


@dataclass(frozen=True, slots=True)
class Layout:
    """How pages are shown: results per page, results in all, the instruction on every page or on the first only."""

    results_per_page: int = 10
    max_results: int = 50
    show_instruction: bool = True


@dataclass(frozen=True, slots=True)
class ShopState:
    """Where the customer is. `options` are the chosen ones, at most one value per option name."""

    page: Page = "search"
    results: tuple[str, ...] = ()
    results_page: int = 1
    asin: str = ""
    options: tuple[tuple[str, str], ...] = ()
    sub_page: str = ""

    def shown(self, layout: Layout) -> tuple[str, ...]:
        """ASINs on the current results page."""
        start = (self.results_page - 1) * layout.results_per_page
        return self.results[start : start + layout.results_per_page]


class Shop:
    """Pages over one catalogue: `next_state` is the transition, `render` the observation."""

    def __init__(self, catalogue: Catalogue, layout: Layout) -> None:
        self.catalogue = catalogue
        self.layout = layout

    def product(self, state: ShopState) -> Product:
        return self.catalogue.by_asin[state.asin]

    def clickables(self, state: ShopState) -> list[str]:
        """What can be clicked, in lower case, in the order of the page."""
        if state.page == "results":
            return [*(text.lower() for text in (BACK, *self._turns(state))), *state.shown(self.layout)]
        if state.page == "item":
            values = [value for _, choices in self.product(state).options for value in choices]
            return [BACK.lower(), PREV.lower(), *values, *(text.lower() for text in (*SUB_PAGES, BUY))]
        return [BACK.lower(), PREV.lower()] if state.page == "sub_page" else []

    def next_state(self, state: ShopState, action: str) -> ShopState | None:
        """The state after `action`; None if the action means nothing here. As in the official simulator, a search is
        understood on every page."""
        parsed = parse_action(action)
        if parsed is None or state.page == "done":
            return None
        kind, argument = parsed
        if kind == "search":
            return ShopState("results", results=self.catalogue.search(argument, self.layout.max_results))
        return self._click(state, argument) if argument in self.clickables(state) else None

    def render(self, state: ShopState, goal: Goal, score: float = 0.0) -> str:
        """The page as text: its visible strings joined by ` [SEP] `."""
        if state.page == "search":
            return SEP.join(("WebShop", "Instruction:", goal.instruction, "Search"))
        if state.page == "done":
            return SEP.join((THANKS, SCORE, str(round(score, 2))))
        head = ("Instruction:", goal.instruction) if self.layout.show_instruction else ()
        body = {"results": self._results, "item": self._item, "sub_page": self._sub_page}[state.page]
        return SEP.join((*head, BACK, *body(state)))

    def _click(self, state: ShopState, target: str) -> ShopState:
        if target == BACK.lower():
            return ShopState()
        if target == BUY.lower():
            return replace(state, page="done")
        if target == PREV.lower() and state.page == "sub_page":
            return replace(state, page="item", sub_page="")
        if target == PREV.lower() and state.page == "item":
            return ShopState("results", results=state.results, results_page=state.results_page)
        if state.page == "results":
            turn = {PREV.lower(): -1, NEXT.lower(): 1}.get(target)
            if turn is not None:
                return replace(state, results_page=state.results_page + turn)
            return replace(state, page="item", asin=target)
        if target.capitalize() in SUB_PAGES:
            return replace(state, page="sub_page", sub_page=target)
        name = self.product(state).option_name(target)
        assert name is not None, f"{target!r} is clickable on {state}, but leads nowhere"
        options = {**dict(state.options), name: target}
        return replace(state, options=tuple(sorted(options.items())))

    def _turns(self, state: ShopState) -> list[str]:
        last = math.ceil(len(state.results) / self.layout.results_per_page)
        return [PREV] * (state.results_page > 1) + [NEXT] * (state.results_page < last)

    def _results(self, state: ShopState) -> list[str]:
        texts = [f"Page {state.results_page} (Total results: {len(state.results)})", *self._turns(state)]
        for asin in state.shown(self.layout):
            product = self.catalogue.by_asin[asin]
            texts += [asin, product.title, f"${product.price:.2f}"]
        return texts

    def _item(self, state: ShopState) -> list[str]:
        product = self.product(state)
        options = [text for name, values in product.options for text in (name, *values)]
        return [PREV, *options, product.title, f"Price: ${product.price:.2f}", "Rating: N.A.", *SUB_PAGES, BUY]

    def _sub_page(self, state: ShopState) -> list[str]:
        product = self.product(state)
        texts = {"description": (product.description,), "features": product.bullets, "reviews": ("No reviews found",)}
        return [PREV, *texts[state.sub_page]]
