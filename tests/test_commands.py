"""Every command and every block of code that the documents show is executed by a test, or says why not.

How: tests/documents.py collects them, tests/commands.py says what executes each.
"""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import BLOCKS, COMMANDS, PATTERNS, Continuous, Make, NotRun, Run, Tested
from documents import EXECUTED, ROOT, SHELLS, Block, Command, blocks_in, commands_in, documents, text_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HAS_CLI = (ROOT / "trl_mise" / "cli.py").is_file()
ALL_BLOCKS: list[Block] = [block for name in documents() for block in blocks_in(text_of(name), name)]
ALL_COMMANDS: list[Command] = [command for name in documents() for command in commands_in(text_of(name), name)]


def complaint(block: Block) -> str | None:
    """What is wrong with a block's marker."""
    if block.language not in EXECUTED or block.document.endswith(".ipynb"):
        return None  # cells of a notebook are executed as a whole
    if block.reason is not None:
        return None if len(block.reason) > 10 else f"{block.where}: 'not run' needs a reason that explains something"
    if block.test is None:
        return f"{block.where}: put <!-- test: NAME --> or <!-- not run: REASON --> in the line before the block"
    if block.language in SHELLS:
        return None if block.test == "commands" else f"{block.where}: shell blocks are marked <!-- test: commands -->"
    if (block.document, block.test) not in BLOCKS:
        return f"{block.where}: add {(block.document, block.test)!r} and the test that executes it to BLOCKS"
    return None


def unknown(command: Command) -> str | None:
    """Why a command is not accounted for."""
    if command.reason is not None or any(pattern.fullmatch(command.text) for pattern in PATTERNS):
        return None
    entry = COMMANDS.get(command.text)
    if entry is None:
        return (
            f"{command.where}: add {command.text!r} to COMMANDS in tests/commands.py, with Run(...), the test that "
            "executes it already, or NotRun(reason); or put <!-- not run: REASON --> before its block"
        )
    return None


def test_every_block_says_what_executes_it() -> None:
    assert [text for text in map(complaint, ALL_BLOCKS) if text] == []


def test_every_command_is_executed_or_says_why_not() -> None:
    assert len(ALL_COMMANDS) > 50
    assert [text for text in map(unknown, ALL_COMMANDS) if text] == []


def test_no_entry_is_left_over() -> None:
    said = {command.text for command in ALL_COMMANDS if command.reason is None}
    assert [text for text in COMMANDS if text not in said] == []
    shown = {(block.document, block.test) for block in ALL_BLOCKS}
    assert [key for key in BLOCKS if key not in shown] == []
    assert [pattern for pattern in PATTERNS if not any(map(pattern.fullmatch, said))] == []


def test_reasons_explain() -> None:
    assert [entry for entry in COMMANDS.values() if isinstance(entry, NotRun) and len(entry.reason) < 15] == []


def test_what_is_found_in_a_document() -> None:
    text = (
        "Type `make  cake` or\n`pip install\nflour`, not `cake`.\n\n<!-- test: commands -->\n```bash\n"
        "trl bake \\\n    --hot  # quickly\n# a remark\n```\n\n```console\n$ pytest -q\n1 passed\n```\n\n"
        "<!-- not run: no oven in the kitchen -->\n```bash\nmake bread\n```\n\n```python\nmake = 'x'\n```\n"
        "\n```text\nmake nothing\n```\n"
    )
    commands = commands_in(text, "recipe.md")
    found = {command.text: command.where for command in commands}
    assert found == {
        "trl bake --hot": "recipe.md:6",
        "pytest -q": "recipe.md:12",
        "make bread": "recipe.md:18",
        "make cake": "recipe.md:1",
        "pip install flour": "recipe.md:2",
    }
    blocks = blocks_in(text, "recipe.md")
    assert [(block.language, block.test, block.reason) for block in blocks] == [
        ("bash", "commands", None),
        ("console", None, None),
        ("bash", None, "no oven in the kitchen"),
        ("python", None, None),
        ("text", None, None),
    ]
    # What is missing is said, with the place and what to do.
    complaints = [text for text in map(complaint, blocks) if text]
    assert [text.split(": ")[0] for text in complaints] == ["recipe.md:12", "recipe.md:22"]
    assert all("<!-- test: NAME -->" in text for text in complaints)
    missing = [text for text in map(unknown, commands) if text]
    assert len(missing) == 4 and "add 'make cake' to COMMANDS in tests/commands.py" in missing[2]


# What is said to execute it exists


def defines(test: str) -> bool:
    file, *names = test.split("::")
    path = ROOT / "tests" / file
    if not path.is_file():
        return False
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for name in names:
        found = [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name]
        if not found:
            return False
        body = found[0].body
    return True


def test_the_tests_that_are_named_exist() -> None:
    named = {entry.test for entry in COMMANDS.values() if isinstance(entry, Tested)} | set(BLOCKS.values())
    assert len(named) > 5 and not defines("test_commands.py::no_such_test") and not defines("test_none.py::test")
    assert [test for test in sorted(named) if not defines(test)] == []


def test_what_continuous_integration_is_said_to_run_it_runs() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    said = [text for text, entry in COMMANDS.items() if isinstance(entry, Continuous)]
    assert said and [text for text in said if not any(line.endswith(text) for line in lines)] == []


@pytest.mark.parametrize("text", [text for text, entry in COMMANDS.items() if isinstance(entry, Make)])
def test_make_would_execute_it(text: str) -> None:
    entry = COMMANDS[text]
    assert isinstance(entry, Make)
    target, *variables = text.split()[1:]
    # As if nothing was installed; that is printed too.
    command = ["make", "--dry-run", "--always-make", "-C", str(ROOT), target, *variables]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert entry.would in done.stdout


@pytest.mark.parametrize("command", {c.text: c for c in ALL_COMMANDS}.values(), ids=lambda command: command.text[:60])
def test_what_a_command_names_exists(command: Command) -> None:
    """Also of those that are not run: targets, modules, scripts, extras, configuration files."""
    assert missing_names(command) == []


def missing_names(command: Command) -> list[str]:
    words = shlex.split(command.text)
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words[1:] if "=" not in word]
        return [target for target in targets if not re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)]
    if words[:2] == ["pip", "install"]:
        extras = [name for word in words for name in re.findall(r"^trl-mise\[([\w,]+)\]$", word)]
        known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        return [name for names in extras for name in names.split(",") if name not in known]
    files = [word for word in words if word.startswith(("examples/", "benchmarks/")) and "/results/" not in word]
    missing = [word for word in files if "…" not in word and not (ROOT / word).exists()]
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    if module.startswith(("trl_mise.", "benchmarks.")) and module != "trl_mise.cli":
        missing += [module] if importlib.util.find_spec(module) is None else []
    return missing


def test_missing_names_are_found() -> None:
    wrong = (
        "make cake",
        'pip install "trl-mise[webshop,flour]"',
        "python examples/cake.py --config examples/configs/webshop.yaml",
        "accelerate launch examples/webshop.py --config examples/configs/cake.yaml",
        "python -m benchmarks.cake --json benchmarks/results/cake.json",
    )
    found = [missing_names(Command(text, "here")) for text in wrong]
    names = ["cake", "flour", "examples/cake.py", "examples/configs/cake.yaml", "benchmarks.cake"]
    assert found == [[name] for name in names]


@pytest.mark.parametrize("text", sorted({c.text for c in ALL_COMMANDS for p in PATTERNS if p.fullmatch(c.text)}))
def test_arguments_of_generated_commands_are_understood(text: str) -> None:
    for pattern, check in PATTERNS.items():
        if pattern.fullmatch(text):
            check(text)


# Execution


class Executed:
    """Executes each command once: what comes after a training shall not train again."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._known: dict[str, tuple[subprocess.CompletedProcess[str], Path]] = {}

    def __call__(self, text: str, folder: Path | None = None) -> tuple[subprocess.CompletedProcess[str], Path]:
        """What became of it, and where."""
        if text not in self._known:
            entry = COMMANDS[text]
            assert isinstance(entry, Run)
            where = folder or self._folders.mktemp("before")
            self._known[text] = execute(f"{text} {entry.smaller}", where), where
        return self._known[text]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    return Executed(tmp_path_factory)


def runs() -> list[object]:
    chosen = {text: entry for text, entry in COMMANDS.items() if isinstance(entry, Run)}
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(text, id=text, marks=marks[entry.slow]) for text, entry in chosen.items()]


@pytest.mark.parametrize("text", runs())
def test_the_command_runs(text: str, tmp_path: Path, executed: "Executed") -> None:
    entry = COMMANDS[text]
    assert isinstance(entry, Run)
    if entry.needs_cli and not HAS_CLI:
        pytest.skip("this checkout has no command line")
    for module in entry.needs:
        pytest.importorskip(module)
    folder = tmp_path
    if entry.after is not None:
        before, folder = executed(entry.after)
        assert before.returncode == 0, before.stderr[-3000:]
    done, folder = executed(text, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(entry.expects, done.stdout), done.stdout[-3000:]
    assert [name for name in entry.files if not (folder / name).is_file()] == []


def execute(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In `folder`, with this interpreter and this checkout; `trl-mise` by its module, which need not be installed."""
    words = shlex.split(command)
    if words[0] == "trl-mise":
        words[:1] = ["python", "-m", "trl_mise.cli"]
    assert words[0] == "python", f"{command}: Run executes python and trl-mise; teach it this one"
    examples = folder / "examples"
    if not examples.exists():
        shutil.copytree(ROOT / "examples", examples, ignore=shutil.ignore_patterns("__pycache__"))
    return subprocess.run(
        [sys.executable, *words[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=1500,  # on a busy machine; a warm start that is not in the cache yet takes minutes
    )
