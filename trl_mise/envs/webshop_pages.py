"""The web shop's pages: what a page shows, what can be clicked on it, and where an action leads. Pure functions."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from .webshop_catalogue import Goal, Product, ShopCatalogue, fold

SEP = " [SEP] "
BACK, PREV, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")
THANKS, SCORE = "Thank you for shopping with us!", "Your score (min 0.0, max 1.0)"

Page = Literal["search", "results", "item", "sub_page", "done"]
ObservationMode = Literal["text", "text_rich"]

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
    argument = fold(match[2]) if match else ""
    return (match[1].lower(), argument) if match and argument else None


@dataclass(frozen=True, slots=True)
class Layout:
    """How pages are shown.

    Args:
        results_per_page (`int`): results on a page.
        max_results (`int`): results of a search in all.
        show_instruction (`bool`): the instruction on every page, or on the first only.
        observation_mode (`str`): `"text"` or `"text_rich"`, see [`Shop.render`].
        official (`bool`): as in the official templates, the last page too offers a next one (it is empty), and a page
            without reviews says nothing.
    """

    results_per_page: int = 10
    max_results: int = 50
    show_instruction: bool = True
    observation_mode: ObservationMode = "text"
    official: bool = False


@dataclass(frozen=True, slots=True)
class ShopState:
    """Where the customer is. `options` are the chosen ones, at most one value per option name; `visited` are the
    products looked at since the search page."""

    page: Page = "search"
    results: tuple[str, ...] = ()
    results_page: int = 1
    asin: str = ""
    options: tuple[tuple[str, str], ...] = ()
    sub_page: str = ""
    visited: tuple[str, ...] = ()

    def shown(self, layout: Layout) -> tuple[str, ...]:
        """ASINs on the current results page."""
        start = (self.results_page - 1) * layout.results_per_page
        return self.results[start : start + layout.results_per_page]


class Piece(NamedTuple):
    """A visible string of a page, and what it is."""

    text: str
    kind: Literal["text", "button", "option", "product"] = "text"
    clicked: bool = False


class Shop:
    """Pages over one catalogue: `next_state` is the transition, `render` the observation."""

    def __init__(self, catalogue: ShopCatalogue, layout: Layout) -> None:
        self.catalogue = catalogue
        self.layout = layout

    def product(self, state: ShopState) -> Product:
        return self.catalogue.by_asin[state.asin]

    def clickables(self, state: ShopState) -> list[str]:
        """What can be clicked, in lower case, in the order of the page."""
        if state.page == "results":
            return [fold(text) for text in (BACK, *self._turns(state), *state.shown(self.layout))]
        if state.page == "item":
            values = [value for _, choices in self.product(state).options for value in choices]
            texts = (fold(text) for text in (BACK, PREV, *values, *SUB_PAGES, BUY))
            return [text for text in dict.fromkeys(texts) if text]
        return [BACK.lower(), PREV.lower()] if state.page == "sub_page" else []

    def next_state(self, state: ShopState, action: str) -> ShopState | None:
        """The state after `action`; None if the action means nothing here. As in the official simulator, a search is
        understood on every page."""
        parsed = parse_action(action)
        if parsed is None or state.page == "done":
            return None
        kind, argument = parsed
        if kind == "search":
            results = self.catalogue.search(argument, self.layout.max_results)
            return ShopState("results", results=results, visited=state.visited)
        return self._click(state, argument) if argument in self.clickables(state) else None

    def render(self, state: ShopState, goal: Goal, score: float = 0.0) -> str:
        """The page in one of the two official formats.

        `"text"` joins the visible strings by ` [SEP] `. `"text_rich"` has one string per line and marks what can be
        clicked by `[button] ... [button_]`, chosen options and visited products by `[clicked button]`; a line at the
        top names each chosen option.
        """
        pieces = list(self._pieces(state, goal, score))
        if self.layout.observation_mode == "text_rich":
            return _rich_text(pieces)
        return SEP.join(text for piece in pieces if (text := piece.text.strip()))

    def _pieces(self, state: ShopState, goal: Goal, score: float) -> Iterator[Piece]:
        if state.page == "search":
            yield from (Piece("WebShop"), Piece("Instruction: "), Piece(goal.instruction), Piece("Search", "button"))
        elif state.page == "done":
            yield from map(Piece, (THANKS, SCORE, str(round(score, 2))))
        else:
            if self.layout.show_instruction:
                yield from map(Piece, ("Instruction:", goal.instruction))
            yield Piece(BACK, "button")
            yield from {"results": self._results, "item": self._item, "sub_page": self._sub_page}[state.page](state)

    def _click(self, state: ShopState, target: str) -> ShopState:
        if target == BACK.lower():
            return ShopState()
        if target == BUY.lower():
            return replace(state, page="done")
        if target == PREV.lower() and state.page == "sub_page":
            return replace(state, page="item", sub_page="")
        if target == PREV.lower() and state.page == "item":
            return replace(state, page="results", asin="", options=())
        if state.page == "results":
            return self._click_on_results(state, target)
        if target.capitalize() in SUB_PAGES:
            return replace(state, page="sub_page", sub_page=target)
        chosen = self.product(state).find_option(target)
        assert chosen is not None, f"{target!r} is clickable on {state}, but leads nowhere"
        return replace(state, options=tuple(sorted({**dict(state.options), chosen[0]: chosen[1]}.items())))

    def _click_on_results(self, state: ShopState, target: str) -> ShopState:
        turn = {PREV.lower(): -1, NEXT.lower(): 1}.get(target)
        if turn is not None:
            return replace(state, results_page=state.results_page + turn)
        asin = next(asin for asin in state.shown(self.layout) if fold(asin) == target)
        return replace(state, page="item", asin=asin, visited=tuple(dict.fromkeys((*state.visited, asin))))

    def _turns(self, state: ShopState) -> list[str]:
        last = math.ceil(len(state.results) / self.layout.results_per_page)
        has_next = self.layout.official or state.results_page < last
        return [PREV] * (state.results_page > 1) + [NEXT] * has_next

    def _results(self, state: ShopState) -> Iterator[Piece]:
        yield Piece(f"Page {state.results_page} (Total results: {len(state.results)})")
        yield from (Piece(text, "button") for text in self._turns(state))
        for asin in state.shown(self.layout):
            product = self.catalogue.by_asin[asin]
            yield Piece(asin, "product", clicked=asin in state.visited)
            yield from map(Piece, (product.title, product.price_tag))

    def _item(self, state: ShopState) -> Iterator[Piece]:
        product = self.product(state)
        chosen = {value for _, value in state.options}
        yield Piece(PREV, "button")
        for name, values in product.options:
            yield Piece(name)
            yield from (Piece(value, "option", clicked=value in chosen) for value in values)
        yield from map(Piece, (product.title, f"Price: {product.price_tag}", f"Rating: {product.rating}"))
        yield from (Piece(text, "button") for text in (*SUB_PAGES, BUY))

    def _sub_page(self, state: ShopState) -> Iterator[Piece]:
        product = self.product(state)
        yield Piece(PREV, "button")
        if state.sub_page == "description":
            yield Piece(product.description)
        elif state.sub_page == "features":
            yield from (Piece(f" {bullet}") for bullet in product.bullets)
        else:
            for title, score, body in product.reviews:
                yield from map(Piece, (f'"{title}"', score, body))
            if not product.reviews and not self.layout.official:
                yield Piece("No reviews found")


def _rich_text(pieces: list[Piece]) -> str:
    lines, chosen = [], []
    for piece in pieces:
        if not piece.text.strip():
            continue
        mark = "clicked button" if piece.clicked else "button"
        marked = piece.text if piece.kind == "text" else f"[{mark}] {piece.text} [{mark}_]"
        lines.append({"option": "  ", "product": "\n"}.get(piece.kind, "") + marked)
        if piece.kind == "option" and piece.clicked:
            chosen.append(f"You have clicked {piece.text}.")
    return "\n".join((*reversed(chosen), *lines)) + "\n"
