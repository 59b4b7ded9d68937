"""From text to index terms, as the official search does it: Lucene's standard tokenizer and English filters.

The steps are those of Anserini's default English analyzer: words by the Unicode rules (UAX #29), the possessive `'s`
cut off, lower case, stop words out, Porter stemming. Checked term by term against the original (tests/data/webshop);
what differs are letters that Unicode got since, and joiners where they join nothing.
"""

import functools
import importlib
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

_STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())
MAX_TERM_LENGTH = 255
"""Longer words are cut into pieces of this length."""

# Word characters are joined; `: . '` stay inside a word between letters, `, ; . '` between digits.
_ASCII_WORD = re.compile(r"\w(?:\w|(?<=[A-Za-z])[:.'](?=[A-Za-z])|(?<=[0-9])[,;.'](?=[0-9]))*", re.ASCII)
# Symbols that are pictographs to the Unicode version of the original, and no longer to today's; titles have some.
_SYMBOLS = (
    r"\u2388\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-\u2712\u2763-\u2767\U0001f000-\U0001f0ff"
    r"\U0001f249-\U0001f53d\U0001f546-\U0001f64f\U0001f680-\U0001f6ff\U0001f774-\U0001f77f\U0001f7d5-\U0001f7ff"
    r"\U0001f947-\U0001fbff"
)
_APOSTROPHES = ("'", "\u2019", "\uff07")


def analyze(text: str) -> list[str]:
    """Index terms of `text`, in their order."""
    return [term for word in split_standard(text) if (term := _term(word))]


def count_terms(text: str) -> Counter[str]:
    """How often each index term is in `text`; the same as counting `analyze(text)`, and faster."""
    counts: Counter[str] = Counter()
    for word, times in Counter(split_standard(text)).items():
        if term := _term(word):
            counts[term] += times
    return counts


def split_standard(text: str) -> list[str]:
    """Words of `text` as the standard tokenizer cuts them."""
    if text.isascii():
        words = [word for word in _ASCII_WORD.findall(text) if word.strip("_")]
    else:
        words = _unicode_word().findall(text)
    if any(len(word) > MAX_TERM_LENGTH for word in words):
        starts = [(word, start) for word in words for start in range(0, len(word), MAX_TERM_LENGTH)]
        return [word[start : start + MAX_TERM_LENGTH] for word, start in starts]
    return words


@functools.cache
def _unicode_word() -> Any:
    """The tokenizer's grammar as one expression. Letters carry the marks that follow them (`mark`)."""
    regex = _require("regex")
    mark = r"(?:(?!\p{Emoji_Modifier})[\p{WB=Format}\p{WB=Extend}\p{WB=ZWJ}])*+"
    letter, hebrew, digit, katakana, joiner, quote, double = (
        rf"{characters}{mark}"
        for characters in (
            r"[\p{WB=ALetter}\p{WB=Hebrew_Letter}]",
            r"\p{WB=Hebrew_Letter}",
            r"(?:\p{WB=Numeric}|[\uff10-\uff19])",
            r"\p{WB=Katakana}",
            r"\p{WB=ExtendNumLet}",
            r"\p{WB=Single_Quote}",
            r"\p{WB=Double_Quote}",
        )
    )
    # The colon is named, because it may leave its class.
    in_word = rf"[\p{{WB=MidLetter}}:\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{mark}"
    in_number = rf"[\p{{WB=MidNum}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{mark}"
    kana = rf"{katakana}(?:(?:{joiner})*{katakana})*+"
    # In Hebrew a double quote joins letters (as in acronyms), and a single quote may end a word.
    after_hebrew = r"(?<=\p{WB=Hebrew_Letter})"
    letters = (
        rf"{letter}(?:(?:(?:{joiner})*|{in_word}){letter}|{after_hebrew}{double}{hebrew})*+(?:{after_hebrew}{quote})?+"
    )
    digits = rf"{digit}(?:(?:(?:{joiner})*|{in_number}){digit})*+"
    plain = rf"(?:{letters}|{digits})++"
    part = rf"(?:{kana}|{plain})"
    word = rf"(?:{joiner})*{part}(?:(?:{joiner})+{part})*+(?:{joiner})*"
    pictograph = (
        r"(?:\p{Emoji_Modifier_Base}\ufe0f?+\p{Emoji_Modifier}"
        r"|(?![0-9#*]|\p{WB=Regional_Indicator})[\p{Emoji}\p{Extended_Pictographic}" + _SYMBOLS + r"])\ufe0f*+"
    )
    emoji = (
        rf"\p{{WB=Regional_Indicator}}{{2}}{mark}|[0-9#*]\ufe0f?\u20e3{mark}"
        rf"|{pictograph}(?:\u200d{pictograph})*+{mark}"
    )
    south_east_asian = rf"(?:\p{{LB=Complex_Context}}{mark})++"
    return regex.compile(rf"{emoji}|{word}|{south_east_asian}|[\p{{Script=Han}}\p{{Script=Hiragana}}]{mark}")


@functools.lru_cache(maxsize=2**20)
def _term(word: str) -> str:
    """The index term of a word; empty for a stop word."""
    if len(word) >= 2 and word[-1] in "sS" and word[-2] in _APOSTROPHES:
        word = word[:-2]
    word = _lower(word)
    return "" if word in STOP_WORDS else _porter()(word)


def _lower(word: str) -> str:
    """Lower case letter by letter as in Java: no special final sigma, one letter for the dotted capital I."""
    return word.lower() if word.isascii() else word.replace("\u0130", "i").replace("\u03a3", "\u03c3").lower()


@functools.cache
def _porter() -> Callable[[str], str]:
    """Porter's stemmer with its author's later rules, as in Lucene.

    The algorithm as first printed, which other libraries offer, leaves e.g. `technolog-i` and `technolog` apart.
    """
    porter = _require("nltk.stem.porter").PorterStemmer
    stemmer = porter(mode=porter.MARTIN_EXTENSIONS)
    return lambda word: str(stemmer.stem(word, to_lowercase=False))


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"the search over the official WebShop files needs {module.partition('.')[0]}: "
            'pip install "trl-mise[webshop]"'
        ) from error
