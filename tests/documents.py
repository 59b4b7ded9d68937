"""What the documents tell a reader to type: fenced blocks with their markers, commands there and in inline code."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
STARTS = (
    *("make ", "pip install", "python ", "python3 ", "accelerate launch", "torchrun", "trl-mise ", "trl "),
    *("mkdocs ", "pytest"),
)
"""What inline code begins with that somebody may type."""
SHELLS, EXECUTED = ("bash", "sh", "shell", "console"), ("bash", "sh", "shell", "console", "python")

_FENCE = re.compile(
    r"(?:^<!-- (?P<kind>test|not run): (?P<said>[^\n]*?) -->\n)?"
    r"^(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=fence)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        document (`str`): path from the repository's root.
        line (`int`): of its fence.
        language (`str`): behind the fence.
        code (`str`): what it holds.
        test (`str`, *optional*): name in `<!-- test: NAME -->`, in the line before it.
        reason (`str`, *optional*): in `<!-- not run: REASON -->`.
    """

    document: str
    line: int
    language: str
    code: str
    test: str | None = None
    reason: str | None = None

    @property
    def where(self) -> str:
        return f"{self.document}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line that somebody may type.

    Args:
        text (`str`): in one line, without prompt and comment.
        where (`str`): document and line.
        reason (`str`, *optional*): why it is not run, where its block says so.
    """

    text: str
    where: str
    reason: str | None = None


def documents() -> list[str]:
    """Paths from the repository's root, notebooks last."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    found += sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "notebooks").glob("*.ipynb"))
    return [path.relative_to(ROOT).as_posix() for path in found if path.is_file()]


def text_of(document: str) -> str:
    """Its Markdown; of a notebook the Markdown cells, and the shell lines of the others as blocks."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return text if document.endswith(".md") else "\n\n".join(_cells(text))


def _cells(notebook: str) -> Iterator[str]:
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
            continue
        lines = re.findall(r"^\s*(?:!|%(?=pip ))(.*)$", source, re.MULTILINE)
        if lines:
            yield "\n".join(["```notebook", *lines, "```"])


def blocks_in(text: str, document: str) -> list[Block]:
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("fence")) + 1
        said = {match["kind"]: match["said"]}
        found.append(Block(document, line, match["language"], match["code"], said.get("test"), said.get("not run")))
    return found


def commands_in(text: str, document: str) -> list[Command]:
    """The commands of shell blocks, of a notebook's shell lines, and of inline code."""
    found = [
        Command(line, block.where, block.reason)
        for block in blocks_in(text, document)
        if block.language in (*SHELLS, "notebook")
        for line in shell_lines(block.code, has_prompts=block.language == "console")
    ]
    prose = _FENCE.sub(lambda match: "\n" * match.group().count("\n"), text)
    for span in _SPAN.finditer(prose):
        code = " ".join(span[2].split())
        if code.startswith(STARTS):
            found.append(Command(code, f"{document}:{prose.count(chr(10), 0, span.start()) + 1}"))
    return found


def shell_lines(code: str, *, has_prompts: bool = False) -> list[str]:
    """One string per command: continued lines joined, comments and, in consoles, everything but `$ ...` left out."""
    lines = re.sub(r"\\\n\s*", "", code).splitlines()
    if has_prompts:
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    without_comments = (re.sub(r"(^|\s)#.*$", "", line) for line in lines)
    return [" ".join(line.split()) for line in without_comments if line.strip()]
