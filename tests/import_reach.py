"""Which modules a file imports, read without running it, and which test files another library can therefore touch."""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
DYNAMIC = ("import_module", "__import__", "importorskip")
ANYTHING = ("importlib", "multiprocessing", "runpy", "subprocess", "trl")
"""Whoever imports these, or from these, may run what no import says."""


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import under `node`, wherever it stands, also `import_module("...")`.

    Relative imports are resolved against `package`.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            source = importlib.util.resolve_name("." * child.level + (child.module or ""), package)
            yield child.lineno, source
            # `from trl_mise import types` names a module too; a name that is none is in no layer and does no harm
            yield from ((child.lineno, f"{source}.{alias.name}") for alias in child.names)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(DYNAMIC):
            if child.args and isinstance(child.args[0], ast.Constant):
                yield child.lineno, str(child.args[0].value)
        elif is_type_checking(child):
            continue
        yield from imports(child, package)


def reaches(test_file: Path, target: str) -> bool:
    """Whether the file imports the module `target` of this project, directly or by way of others; or may, unseen."""
    found = _reached(test_file)
    # `from trl_mise import X` looks X up when it is asked for.
    return not found.isdisjoint({target, "trl_mise"}) or any(name.split(".")[0] in ANYTHING for name in found)


@cache
def _reached(test_file: Path) -> frozenset[str]:
    found: set[str] = set()
    waiting = [test_file]
    while waiting:
        file = waiting.pop()
        is_ours = ROOT / "trl_mise" in file.parents  # what our own modules may run has tests that may run anything
        package = ".".join(file.relative_to(ROOT).parts[:-1])
        for _, name in imports(ast.parse(file.read_text(encoding="utf-8"), filename=str(file)), package):
            source = source_of(name)
            if name in found or (is_ours and (source is None or name == "trl_mise")):
                continue
            found.add(name)
            if source is not None:
                waiting.append(source)
    return frozenset(found)


def source_of(name: str) -> Path | None:
    """The file of a module of this project; tests import each other by their bare names."""
    relative = Path(*name.split("."))
    for folder in (ROOT, ROOT / "tests"):
        for file in (folder / relative.with_suffix(".py"), folder / relative / "__init__.py"):
            if file.is_file():
                return file
    return None
