"""The README's code runs as it stands, and what README and docs name exists."""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from trl_mise import MISEConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


def defaults() -> dict[str, Any]:
    return {
        field.name: field.default if field.default is not MISSING else field.default_factory()
        for field in fields(MISEConfig)
        if field.default is not MISSING or field.default_factory is not MISSING
    }


def test_the_environment_example_runs(tmp_path, monkeypatch):
    from fakes import byte_tokenizer, tiny_llama

    tokenizer = byte_tokenizer("chatml")
    code = re.search(r"<!-- test: environment -->\n```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    model = tiny_llama(len(tokenizer), max_position_embeddings=2048)
    scope: dict[str, Any] = {"tokenizer": tokenizer, "model": model}
    exec(compile(code.group(1), "README.md", "exec"), scope)
    assert scope["trainer"].state.episode == 256
    assert (tmp_path / "runs" / "guess" / "trajectories.jsonl").read_text(encoding="utf-8").count("\n") == 256


def test_the_swap_example_names_real_arguments():
    import inspect

    from trl_mise import MISETrainer

    call = re.search(r"MISETrainer\(  # was: PPOTrainer\(\n(.*?)\n\)", README, re.DOTALL)
    assert call is not None
    used = set(re.findall(r"^\s*(\w+)=", call.group(1), re.MULTILINE))
    assert used and used <= set(inspect.signature(MISETrainer.__init__).parameters)


ROWS = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \| `([^`]+)` \|", README, re.MULTILINE)


@pytest.mark.parametrize(("name", "second", "default"), ROWS)
def test_the_table_of_options_is_true(name, second, default):
    for option in filter(None, (name, second)):
        actual = MISEConfig(output_dir="unused").hindsight_coef if option == "hindsight_coef" else defaults()[option]
        if default == "response_length":
            assert actual is None
        else:
            assert repr(actual).replace("'", '"') == default


def test_the_table_was_found():
    assert len(ROWS) >= 8


def test_what_the_method_names_exists():
    import importlib

    assert (ROOT / "tests" / "test_theory.py").is_file()
    names = set(re.findall(r"`([a-z_]+)\.([A-Za-z_]+)`", METHOD))
    assert names
    for module, name in names:
        assert hasattr(importlib.import_module(f"trl_mise.{module}"), name), f"{module}.{name}"


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
