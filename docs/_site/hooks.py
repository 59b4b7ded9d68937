"""MkDocs hooks: pages that live elsewhere in the repository, and links that point out of `docs/`.

The documents are written to be read in the repository too, so they link to `../README.md` and `../tests/...`. On the
site README, changelog and the like are pages; what is no page is named without a link.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "readme.md",
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Documents outside of `docs/` -> their page."""
OPTIONAL = ("contributing.md", "releasing.md")
"""Pages of the navigation that are left out while nobody has written them."""

FENCED = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)[ \t]*$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
MARKER = re.compile(r"^<!-- (?:test|not run): .*? -->\n", re.MULTILINE)
"""Says which test executes a block (tests/test_commands.py); nothing for readers of the site."""


def on_config(config: Any) -> Any:
    config.nav = [_existing(entry) for entry in config.nav]
    return config


def _existing(section: dict[str, Any]) -> dict[str, Any]:
    (title, entries), *_ = section.items()
    if isinstance(entries, str):
        return section
    return {title: [entry for entry in entries if _exists(next(iter(entry.values())))]}


def _exists(page: str) -> bool:
    source = {uri: path for path, uri in PAGES.items()}.get(page, f"docs/{page}")
    return page not in OPTIONAL or (ROOT / source).is_file()


def on_files(files: Files, config: Any) -> Files:
    for path, uri in PAGES.items():
        if (ROOT / path).is_file():
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    uri = page.file.src_uri
    source = {page_uri: path for path, page_uri in PAGES.items()}.get(uri, f"docs/{uri}")

    def relinked(text: str) -> str:
        return LINK.sub(lambda match: _link(match, source, uri), text)

    pieces, end = [], 0
    for block in FENCED.finditer(markdown):
        pieces += [relinked(markdown[end : block.start()]), block.group()]
        end = block.end()
    return MARKER.sub("", "".join([*pieces, relinked(markdown[end:])]))


def _link(match: re.Match[str], source: str, uri: str) -> str:
    """The link as it is right on the site; its text alone where the site has no such page."""
    target, hash_sign, anchor = match["target"].partition("#")
    if not target or ":" in target:
        return match.group()
    path = normpath(str(PurePosixPath(source).parent / target))
    if path in PAGES:
        page = PAGES[path]
    elif path.startswith("docs/"):
        page = path.removeprefix("docs/")
    else:
        return match["text"]
    found = relpath(page, str(PurePosixPath(uri).parent))
    return f"{match['image']}[{match['text']}]({found}{hash_sign}{anchor})"
