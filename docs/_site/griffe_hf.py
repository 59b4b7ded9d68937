"""Griffe extension: docstrings as Hugging Face writes them, for a parser that knows Google's style.

Types stand in backquotes there (``name (`int`, *optional*, defaults to `4`)``) and names that are explained elsewhere
in brackets ([`MISEConfig`]).
"""

import re
from typing import Any

from griffe import Extension

TYPED = re.compile(
    r"^(?P<indent> +)(?P<names>\**\w+(?:, \**\w+)*) \((?P<kind>.*?)\)(?P<colon>:[ \n])", re.MULTILINE | re.DOTALL
)
RETURNED = re.compile(r"(?P<head>^ *Returns:\n +)`(?P<kind>[^`\n]+)`:", re.MULTILINE)
REFERENCE = re.compile(r"\[`~?(?P<name>[\w.]+)`\](?!\(|\[)")

QUOTES = str.maketrans("", "", '`"')


def readable(text: str) -> str:
    """The docstring with plain types, and without brackets about names."""
    text = TYPED.sub(_typed, text)
    text = RETURNED.sub(r"\g<head>\g<kind>:", text)
    return REFERENCE.sub(r"`\g<name>`", text)


def _typed(match: re.Match[str]) -> str:
    kind = " ".join(REFERENCE.sub(r"\g<name>", match["kind"]).split()).translate(QUOTES)
    return f"{match['indent']}{match['names']} ({kind.replace('*optional*', 'optional')}){match['colon']}"


class HuggingFaceDocstrings(Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
