"""Names and texts of others stay texts in a Markdown document: rendered, they are what they were."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from trl_mise.markdown import code, escape, one_line, table

RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = [
    *("a`b", "``x``", "|a|b|", "`|`", "a\\", "\\|", "`", "# title", "1. one", "2) two", "- item", "+ item", "> said"),
    *("[a](http://b)", "![x](y)", "<script>alert(1)</script>", "<!-- hidden", "&lt;b&gt;", "*b* _c_ ~~d~~", "a\\|b"),
    *("line\n---\n# two", "a\r\nb\u2028c\x00d", "$x^2$", "http://evil.test", "www.evil.test", "```\nfence", "  "),
]


def rendered_cells(cells: list[str]) -> list[str]:
    """What a browser shows of the only row of a table; there must be nothing else."""
    page = RENDERER.render("\n".join(table([""] * len(cells), [cells])))
    body = re.search(r"<tbody>(.*)</tbody>", page, re.DOTALL)
    assert body is not None and page.count("<table>") == 1 and page.rstrip().endswith("</table>"), page
    return re.findall(r"<td>(.*?)</td>", body[1], re.DOTALL)


def text_of(cell: str) -> str:
    return html.unescape(re.sub(r"</?code>", "", cell))


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_shown_is_what_was_said(text: str) -> None:
    plain, span = rendered_cells([escape(text), code(text)])
    assert "<" not in plain and text_of(plain).strip() == one_line(text)
    assert re.fullmatch(r"<code>[^<]*</code>", span) and text_of(span).strip() == one_line(text).strip()
    paragraph = RENDERER.render(escape(text)).strip()
    assert re.fullmatch(r"(<p>[^<]*</p>)?", paragraph), paragraph


@given(st.text(alphabet="ab1 .-+#>`|*_\\[]()<>&!~\n:/w", max_size=30))
def test_whatever_is_said(text: str) -> None:
    plain, span = rendered_cells([escape(text), code(text)])
    assert text_of(plain).strip() == one_line(text)
    assert text_of(span).strip() == one_line(text)
    assert "<" not in plain and "<" not in span.removeprefix("<code>").removesuffix("</code>")


def test_links_are_not_made_of_words() -> None:
    """GitHub and the hub make links of addresses that stand alone; an escaped one does not look like one."""
    assert "http://" not in escape("see http://evil.test") and "www." not in escape("see www.evil.test")


def test_long_texts_are_cut() -> None:
    assert one_line("word " * 100, 20) == "word word word word…"
    assert len(one_line("x" * 500, 200)) == 200
    assert one_line("short", 5) == "short"
