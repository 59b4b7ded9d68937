"""Nouns of product titles: the official web shop takes them from spaCy's part-of-speech tags; without it, a guess."""

import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable
from typing import Any

from ..notices import warn_once

NOUN_TAGS = ("NOUN", "PROPN")
SPACY_MODELS = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm")
"""Models that `"auto"` looks for, in this order; the first is the one that the official set-up installs."""

Nouns = Callable[[str], tuple[str, ...]]

_POSSESSIVE = re.compile(r"['’]s\b")
_TITLE_WORD = re.compile(r"(?=\d*[^\W\d_])[^\W_]+")
# Closed classes, and adjectives that titles are full of. Everything else with a letter in it counts as a noun.
_NO_NOUNS = (
    "a about above after all also an and any are as at be before below best better between big both bright by can "
    "classic clean clear cool cute dark deep double dry each easy elegant every extra fast fine firm flat for free "
    "fresh from full funny good great hard has have heavy high hot in inside into is it its large light long loose "
    "low mini more most multi natural new nice no non not of off on one only or our out over per perfect plus "
    "portable pre pure quick real removable replacement rich round safe sexy short simple single slim small smart "
    "soft solid so square strong super sweet tall than that the their them these they thick thin this tight to top "
    "two ultra under up upgraded upon various vintage warm wet which white wide will with within without you your"
)
_CLOSED = frozenset(_NO_NOUNS.split())
_ADJECTIVE = re.compile(r"\w{3}(?:able|ible|ful|less|ous|ish|ly|proof|sized|ized|ical)$")


def approximate_nouns(title: str) -> tuple[str, ...]:
    """Lower-case words of `title` that are probably nouns or names: no numbers, function words or usual adjectives."""
    words = (word.lower() for word in _TITLE_WORD.findall(_POSSESSIVE.sub("", title)))
    return tuple(word for word in words if word not in _CLOSED and not _ADJECTIVE.search(word))


def find_nouns(title_tagger: str | Callable[[str], Iterable[Any]]) -> Nouns:
    """The function that lists the nouns of a title, with repetitions.

    Args:
        title_tagger (`str` or callable): `"auto"` takes spaCy with the first installed one of [`SPACY_MODELS`], else
            [`approximate_nouns`], and says so once; `"approximate"` takes that without a word; any other name is a
            spaCy model. A callable is used as a spaCy pipeline: it returns tokens with `text` and `pos_`.
    """
    return _from_name(title_tagger) if isinstance(title_tagger, str) else _from_pipeline(title_tagger)


def _from_pipeline(pipeline: Callable[[str], Iterable[Any]]) -> Nouns:
    @functools.lru_cache(maxsize=2**16)
    def nouns(title: str) -> tuple[str, ...]:
        return tuple(token.text.lower() for token in pipeline(title) if token.pos_ in NOUN_TAGS)

    return nouns


@functools.cache
def _from_name(name: str) -> Nouns:
    if name == "approximate":
        return functools.lru_cache(maxsize=2**16)(approximate_nouns)
    if name != "auto":
        return _load(name)
    installed = next((model for model in SPACY_MODELS if importlib.util.find_spec(model)), None)
    if installed is not None and importlib.util.find_spec("spacy"):
        return _load(installed)
    warn_once(
        "WebShop: the nouns of product titles are guessed, because no English spaCy model is installed; rewards of "
        "purchases outside the wanted category can differ from the official ones. For the official tags run "
        f"`pip install spacy` and `python -m spacy download {SPACY_MODELS[0]}`, or pass "
        'title_tagger="approximate" to silence this'
    )
    return _from_name("approximate")


def _load(model: str) -> Nouns:
    try:
        spacy = importlib.import_module("spacy")
        # Entities are of no use here, and cost half of the time.
        return _from_pipeline(spacy.load(model, exclude=["ner"]))
    except (ImportError, OSError) as error:
        raise ImportError(
            f"title_tagger={model!r} is no spaCy pipeline that can be loaded ({error}); run `pip install spacy` and "
            f'`python -m spacy download {model}`, or use title_tagger="approximate"'
        ) from error
