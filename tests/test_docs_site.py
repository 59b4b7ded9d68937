"""The documentation site: it builds without a warning, asks no other host for anything, and shows every page."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import trl_mise

ROOT = Path(__file__).parents[1]
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
NAMED = re.compile(r"^::: ([\w.]+)", re.MULTILINE)

pytest.importorskip("mkdocs", reason='needs pip install "trl-mise[docs]"')


class Page(HTMLParser):
    """What a page loads, where its links lead, and what they can be led to."""

    # Attributes whose address a browser fetches by itself.
    LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "audio": "src", "video": "src"}
    LINK_KINDS = ("stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "manifest", "modulepreload")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.formulas: list[str] = []
        self._in_formula = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if self.LOADS.get(tag) in given:
            self.loads.append(given[self.LOADS[tag]])
        if tag == "link" and set(given.get("rel", "").split()) & set(self.LINK_KINDS):
            self.loads.append(given["href"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self._in_formula = "arithmatex" in given.get("class", "").split()

    def handle_data(self, data: str) -> None:
        if self._in_formula:
            self.formulas.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_formula = False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does; strict, so that every warning of MkDocs is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Path in the site -> page."""
    found = {path.relative_to(site).as_posix(): path for path in sorted(site.rglob("*.html"))}
    return {name: Page(path.read_text(encoding="utf-8")) for name, path in found.items()}


def is_external(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def test_no_page_fetches_anything_from_elsewhere(pages: dict[str, Page]) -> None:
    loads = {(name, address) for name, page in pages.items() for address in page.loads}
    assert len(loads) > 5 * len(pages)
    assert [found for found in sorted(loads) if is_external(found[1])] == []
    # What the theme's script would fetch by itself: diagrams' renderer, stars of a repository.
    for name, page in pages.items():
        assert "mermaid" not in page.ids and not any("mermaid" in address for address in page.loads), name
    assert "repo_url" not in CONFIG, "the theme asks the repository's host for its stars; look at what it fetches then"


def test_no_style_fetches_anything_from_elsewhere(site: Path) -> None:
    styles = list(site.rglob("*.css"))
    assert len(styles) >= 4
    for style in styles:
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"@import", text), style
        for address in re.findall(r"url\(\s*['\"]?([^'\")]+)", text):
            assert not is_external(address), (style.name, address)
            if not address.startswith(("data:", "#")):
                assert (style.parent / address).is_file(), (style.name, address)


def test_what_pages_load_is_there(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        if name == "404.html":  # shown at any address: its paths begin at the site's root
            continue
        for address in page.loads:
            path = unquote(urlsplit(address).path)
            assert not path or (site / name).parent.joinpath(path).is_file(), (name, address)


def test_every_link_within_the_site_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    """Also to the section; MkDocs itself does not look into generated pages."""
    counted = 0
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if name == "404.html" or is_external(link):
                continue
            target = (site / name).parent.joinpath(unquote(parts.path)) if parts.path else site / name
            assert target.is_file(), (name, link)
            relative = target.resolve().relative_to(site.resolve()).as_posix()
            if parts.fragment and relative in pages:
                assert unquote(parts.fragment) in pages[relative].ids, (name, link)
                counted += 1
    assert counted > 100


def test_every_page_can_be_reached_from_the_navigation(pages: dict[str, Page]) -> None:
    home = pages["index.html"]
    reached = {urlsplit(link).path for link in home.links}
    written = {
        path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")
    }
    assert written <= set(pages)
    assert [name for name in sorted(pages) if name not in reached | {"404.html", "index.html"}] == []


def test_formulas_are_left_for_the_renderer(pages: dict[str, Page]) -> None:
    formulas = pages["method.html"].formulas
    assert len(formulas) > 80
    assert all(f.strip().startswith(("\\(", "\\[")) and f.strip().endswith(("\\)", "\\]")) for f in formulas)


def test_no_marker_and_no_link_to_a_source_file_is_shown(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        text = (site / name).read_text(encoding="utf-8")
        assert "<!-- test:" not in text and "<!-- not run:" not in text, name
        assert [link for link in page.links if link.split("#")[0].endswith((".py", ".md", ".yaml"))] == [], name


def test_the_reference_has_every_public_name() -> None:
    named = {
        name.rpartition(".")[2]
        for path in (ROOT / "docs" / "api").glob("*.md")
        for name in NAMED.findall(path.read_text(encoding="utf-8"))
    }
    assert sorted({*trl_mise.__all__} - named - {"__version__"}) == []
    from trl_mise.envs import adapters

    functions = {name for name in adapters.__all__ if name.startswith(("from_", "as_"))}
    assert functions <= named


def test_the_reference_shows_no_private_and_no_imported_name(pages: dict[str, Page]) -> None:
    shown = {name for page in pages.values() for name in page.ids if name.startswith("trl_mise.")}
    assert len(shown) > 60
    assert [name for name in sorted(shown) if any(part.startswith("_") for part in name.split("."))] == []
    assert "trl_mise.metrics.Trajectory" not in shown and "trl_mise.metrics.auroc" in shown


def test_docstrings_are_read_as_they_are_meant(site: Path) -> None:
    """Types without backquotes, references without brackets, parameters of configurations with their defaults."""
    text = (site / "api" / "trainers.html").read_text(encoding="utf-8")
    assert "defaults to" in text and "hindsight_coef" in text
    assert not re.search(r"\[<code>\w+</code>\]", text)
    spec = importlib.util.spec_from_file_location("griffe_hf", ROOT / "docs" / "_site" / "griffe_hf.py")
    assert spec is not None and spec.loader is not None
    griffe_hf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(griffe_hf)
    read = griffe_hf.readable(
        "Does it, see [`Other`].\n\n    Args:\n        a, b (`int`, *optional*, defaults to `4`):\n            Both.\n"
        "        c ([`Other`] or `None`): a [`link`](page.md).\n\n    Returns:\n        `dict[str, int]`: counts.\n"
    )
    assert read == (
        "Does it, see `Other`.\n\n    Args:\n        a, b (int, optional, defaults to 4):\n            Both.\n"
        "        c (Other or None): a [`link`](page.md).\n\n    Returns:\n        dict[str, int]: counts.\n"
    )


def test_the_navigation_has_no_page_twice() -> None:
    nav = yaml.safe_load(CONFIG[CONFIG.index("nav:") : CONFIG.index("validation:")])["nav"]
    uris = [uri for section in nav for entry in section.values() for uri in flat(entry)]
    assert len(uris) == len(set(uris)) > 20


def flat(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [uri for part in entry for uri in flat(next(iter(part.values())))]  # type: ignore[attr-defined]
