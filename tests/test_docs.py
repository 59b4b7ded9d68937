"""The README's code runs as it stands, and what README and docs name exists."""

import importlib
import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import transformers
import trl
from packaging.version import Version
from trl import GRPOTrainer

from trl_mise import MISEConfig, MISEGRPOConfig, MISEGRPOTrainer, MISETrainer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
DIAGNOSTICS = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
MEASURES = "".join(
    (ROOT / "trl_mise" / f"{module}.py").read_text(encoding="utf-8") for module in ("metrics", "targets", "callback")
)
CODE = re.compile(r"(?:<!-- test: (\w+) -->\n)?```python\n(.*?)```", re.DOTALL)


def defaults() -> dict[str, Any]:
    return {
        field.name: field.default if field.default is not MISSING else field.default_factory()
        for field in fields(MISEConfig)
        if field.default is not MISSING or field.default_factory is not MISSING
    }


def run_example(name: str, scope: dict[str, Any]) -> Any:
    """Runs the README's block behind `<!-- test: name -->`; its models and data are what `scope` says."""
    code = {block.group(1): block.group(2) for block in CODE.finditer(README)}[name]
    exec(compile(code, f"README.md ({name})", "exec"), scope)
    return scope["trainer"]


def episodes(folder: Path) -> int:
    return (folder / "trajectories.jsonl").read_text(encoding="utf-8").count("\n")


def test_no_code_of_the_readme_goes_untested():
    assert [block.group(1) for block in CODE.finditer(README)] == ["swap", "environment", "grpo"]


def test_the_swap_example_runs(tmp_path, monkeypatch):
    from datasets import Dataset
    from trainer_fakes import make_classifier, make_policy, make_tokenizer

    tokenizer = make_tokenizer()
    monkeypatch.chdir(tmp_path)
    scope = {
        "tokenizer": tokenizer,
        "policy": make_policy(tokenizer),
        "reward_model": make_classifier(tokenizer, seed=2),
        "value_model": make_classifier(tokenizer, seed=1),
        "prompts": Dataset.from_dict({"input_ids": [tokenizer("say 1 2")["input_ids"]] * 16}),
    }
    trainer = run_example("swap", scope)
    assert trainer.uses_hindsight and trainer.state.episode == 64
    assert episodes(tmp_path / "runs" / "swap") == 64


def test_the_environment_example_runs(tmp_path, monkeypatch):
    from fakes import byte_tokenizer, tiny_llama

    tokenizer = byte_tokenizer("chatml")
    monkeypatch.chdir(tmp_path)
    model = tiny_llama(len(tokenizer), max_position_embeddings=2048)
    trainer = run_example("environment", {"tokenizer": tokenizer, "model": model})
    assert trainer.state.episode == 256
    assert episodes(tmp_path / "runs" / "guess") == 256


@pytest.mark.skipif(
    Version(trl.__version__) < Version("1.12") or Version(transformers.__version__) < Version("5.13"),
    reason="environments that own their reward came with TRL 1.12, response templates with transformers 5.13",
)
def test_the_grpo_example_runs(tmp_path, monkeypatch):
    """What is sampled by an untrained model are no tool calls; the loop is the same."""
    from datasets import Dataset
    from fakes import tiny_llama
    from test_adapters_grpo import TinyKitchen
    from test_adapters_grpo import byte_tokenizer as tool_tokenizer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer = tool_tokenizer()
    model = tiny_llama(len(tokenizer), max_position_embeddings=2048)
    scope = {"Dataset": Dataset, "GuessEnv": TinyKitchen, "model": model, "tokenizer": tokenizer}
    trainer = run_example("grpo", scope)
    assert trainer.uses_hindsight and trainer.state.global_step == 2
    assert episodes(tmp_path / "runs" / "grpo") == 16


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


def test_the_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z-]+)", "".join(re.findall(r"`[^`]+`|```bash\n.*?```", README, re.DOTALL))))
    assert {"demo", "test"} <= targets
    assert [target for target in sorted(targets) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_the_code_that_the_method_names_exists():
    names = {pair for pair in re.findall(r"`([a-z_]+)\.([A-Za-z_]+)`", METHOD + DIAGNOSTICS) if pair[1] != "md"}
    assert len(names) > 20
    for module, name in names:
        assert hasattr(importlib.import_module(f"trl_mise.{module}"), name), f"{module}.{name}"


def test_the_options_and_metrics_that_the_documents_name_exist():
    arguments = [inspect.signature(trainer).parameters for trainer in (MISETrainer, MISEGRPOTrainer, GRPOTrainer)]
    of_grpo = {field.name for field in fields(MISEGRPOConfig)} | {"env_mask"}  # a key of what a rollout_func returns
    known = {*defaults(), *of_grpo, *(name for names in arguments for name in names)}
    words = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?:=[^`]*)?`", METHOD))
    assert {"hindsight_placement", "evaluator_view", "gae_level", "kl_placement"} <= words
    assert words <= known
    metrics = set(re.findall(r"`((?:hindsight|mise|calibration)/[a-z_]+)`", METHOD + README + DIAGNOSTICS))
    assert len(metrics) >= 12
    assert [name for name in sorted(metrics) if f'"{name}"' not in MEASURES] == []


def test_every_measure_of_the_judge_is_explained():
    logged = set(re.findall(r'f?"((?:hindsight|mise)/[a-z_]+)', MEASURES))
    assert len(logged) >= 12
    assert [name for name in sorted(logged) if name not in DIAGNOSTICS] == []


def test_the_options_that_the_diagnostics_name_exist():
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?:=[^`]*)?`", DIAGNOSTICS))
    assert {"hindsight_gate", "calibration_anchor_coef"} <= named
    others = {"report_to", "logging_steps"}  # TRL's and transformers' own
    assert [name for name in sorted(named - others) if not hasattr(MISEConfig, name) and name not in defaults()] == []


@pytest.mark.parametrize("document", ["README.md", "docs/method.md", "docs/diagnostics.md", "docs/results.md"])
def test_files_that_the_documents_name_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    linked = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if not t.startswith("http")]
    missing = [target for target in linked if not (ROOT / document).parent.joinpath(target).exists()]
    named = re.findall(r"\b(?:trl_mise|examples|tests|docs)/[\w/]+\.(?:py|md)\b", text)
    missing += [path for path in named if not (ROOT / path).is_file()]
    assert linked or named
    assert missing == []
