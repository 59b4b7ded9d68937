"""Takes a report apart again, for its tests."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np


class Elements(HTMLParser):
    """Start tags with their attributes, and what scripts and styles hold."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, dict[str, str | None], str]] = []
        self.words: list[str] = []
        self._open: tuple[str, dict[str, str | None]] | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = (tag, dict(attrs)) if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.inside.append((*self._open, data))
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        """What is read on the page without JavaScript, in one line."""
        return " ".join(" ".join(self.words).split())


def script_of(html: str, name: str) -> str:
    match = re.search(rf'<script type="[^"]+" id="{name}">(.*?)</script>', html, re.DOTALL)
    assert match, f"no script {name}"
    return match[1]


def page_data(html: str) -> dict[str, Any]:
    """What the charts are drawn from."""
    return dict(json.loads(script_of(html, "report-data")))


def charts(html: str) -> dict[str, dict[str, Any]]:
    return {chart["name"]: chart for chart in page_data(html)["charts"]}


def curve(html: str, chart: str, name: str) -> np.ndarray:
    """`(N, 2)` places and values."""
    (series,) = [s for s in charts(html)[chart]["series"] if s["name"] == name]
    return np.array([series["x"], series["y"]]).T


def packed(html: str) -> dict[str, Any]:
    """The episodes as the page unpacks them."""
    return dict(json.loads(gzip.decompress(base64.b64decode(script_of(html, "report-episodes")))))


def episodes(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The packed columns as records again."""
    texts = ["".join(values["pieces"][piece] for piece in text) for text in values["texts"]]
    columns, steps, start, found = values["episodes"], values["steps"], 0, []
    for at, length in enumerate(columns["length"]):
        own = {name: column[at] for name, column in columns.items()}
        for name in ("split", "instruction", "final", "stop", "error"):
            own[name] = texts[own[name]]
        places = range(start, start + length)
        own["steps"] = [
            {
                **{name: texts[steps[name][p]] for name in ("observation", "action")},
                "evaluation": texts[steps["evaluation"][p]] if steps["evaluation"] else "",
                **{name: steps[name][p] if steps[name] else None for name in ("reward", "invalid", "score")},
                **{name: steps[name][p] if steps[name] else None for name in ("shaping", "advantage")},
                "probs": [column[p] for column in steps["probs"]],
            }
            for p in places
        ]
        start += length
        found.append(own)
    return found
