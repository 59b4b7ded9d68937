"""How the official web shop compares words: fuzzy token sets, and colors by their first known name."""

import functools
import re
from difflib import SequenceMatcher

FUZZY_THRESHOLD = 85
"""Texts match above this [`token_set_ratio`]."""

# The names that the official shop looks for, in its (alphabetical) order: the first one inside a text stands for it.
_COLORS = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel "
    "camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry "
    "cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey "
    "heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight "
    "mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow "
    "red rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal "
    "tiger turquoise violet walnut wheat white wine yellow"
)
COLORS = tuple(_COLORS.split())

_LATIN_1 = dict.fromkeys(range(128, 256))
_NO_WORD = re.compile(r"\W")


def normalize_color(text: str) -> str:
    """The first known color name inside `text`, be it inside a word; `text` itself where there is none."""
    return next((color for color in COLORS if color in text), text)


def token_set_ratio(first: str, second: str) -> int:
    """Similarity of the words of two texts, 0 to 100, whatever their order and repetitions.

    It compares the common words, and these followed by the rest of either text; the best of the three comparisons
    counts, so that a text whose words are all in the other one scores 100. The numbers are those of thefuzz 0.19,
    which the official shop pins, without its optional C extension: ratios of `difflib`, rounded to whole per cents.
    """
    ours, theirs = _tokens(first), _tokens(second)
    if not ours or not theirs:
        return 0
    common = " ".join(sorted(ours & theirs))
    rests = (" ".join(sorted(ours - theirs)), " ".join(sorted(theirs - ours)))
    if common and not all(rests):
        return 100
    whole = [f"{common} {rest}".strip() for rest in rests]
    pairs = ((common, whole[0]), (common, whole[1]), (whole[0], whole[1]))
    return max(_ratio(a, b) for a, b in pairs)


@functools.lru_cache(maxsize=2**16)
def is_similar(first: str, second: str) -> bool:
    """True above [`FUZZY_THRESHOLD`]."""
    return token_set_ratio(first, second) > FUZZY_THRESHOLD


def _ratio(first: str, second: str) -> int:
    if not first or not second:
        return 0
    return round(100 * SequenceMatcher(None, first, second).ratio())


@functools.lru_cache(maxsize=2**14)
def _tokens(text: str) -> frozenset[str]:
    """Lower-case words; the upper half of Latin-1 is dropped from them."""
    return frozenset(_NO_WORD.sub(" ", text.translate(_LATIN_1)).lower().split())
