"""Other people's words in a Markdown document: names and texts that must stay texts, whatever stands in them."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

_SPECIAL = re.compile(r"[\\`*_\[\]<>#|~$&]|(?<=[a-z]):(?=//)|(?<=www)\.", re.IGNORECASE)
_FIRST = re.compile(r"^(\d+)([.)])(?=\s|$)|^([-+])")


def one_line(text: Any, limit: int | None = None) -> str:
    """The text without line breaks and without characters that cannot be seen.

    Args:
        text: anything; its `str` is taken.
        limit (`int`, *optional*): most characters; what is longer ends with an ellipsis.
    """
    visible = "".join(char if char.isprintable() else " " for char in str(text))
    words = " ".join(visible.split())
    return words if limit is None or len(words) <= limit else words[: limit - 1].rstrip() + "…"


def escape(text: Any, limit: int | None = 200) -> str:
    """The text as plain words: no markup, no link and no table cell begins or ends in it."""
    escaped = _SPECIAL.sub(lambda found: "\\" + found.group(), one_line(text, limit))
    return _FIRST.sub(lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"\\{m[3]}", escaped)


def code(text: Any, limit: int | None = 200) -> str:
    """The text as a code span, also within a table, where a bar would end the cell even there."""
    line = one_line(text, limit) or " "
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{fence}{space}{line}{space}{fence}".replace("|", "\\|")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; its cells are Markdown already."""
    line = "| {} |".format
    return [line(" | ".join(header)), line(" | ".join("---" for _ in header)), *(line(" | ".join(r)) for r in rows)]
