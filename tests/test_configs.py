"""The configurations for real models: every key is understood, and a batch is 128 episodes."""

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from trl_mise import MISEConfig
from trl_mise._trl import TrlParser
from trl_mise.envs.registry import ENVIRONMENTS

EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIGS = {"ftwp": "textworld", "scienceworld": "scienceworld", "webshop": "webshop"}
"""Configuration -> example (and environment) that it is for."""

TASK_KEYS: dict[str, dict[str, Any]] = {
    "ftwp": {"game": list[str], "train_tasks": int, "eval_episodes": int, "task_seed": int},
    "scienceworld": {"simplifications": str, "train_tasks": int, "eval_episodes": int, "task_seed": int},
    "webshop": {"train_tasks": int, "eval_episodes": int, "task_seed": int},
}
"""Keys that belong to the environment's own arguments."""

# A CPU has no bfloat16 training that transformers would accept.
ON_A_CPU = ["--bf16", "False", "--use_cpu", "True"]


def argument_classes(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """(the example's own arguments, `ModelArguments`)."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLES)])
    # Under another name: two examples are called like the packages that they need.
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{CONFIGS[name]}.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, example)
    spec.loader.exec_module(example)
    (own,) = [
        value
        for value in vars(example).values()
        if dataclasses.is_dataclass(value) and value.__module__ == example.__name__
    ]
    return own, example.ModelArguments


def path_of(name: str) -> Path:
    return EXAMPLES / "configs" / f"{name}.yaml"


def test_every_configuration_is_known() -> None:
    assert {path.stem for path in (EXAMPLES / "configs").glob("*")} == set(CONFIGS)
    assert set(CONFIGS.values()) <= set(ENVIRONMENTS)


@pytest.mark.parametrize("name", CONFIGS)
class TestConfiguration:
    @pytest.fixture
    def parsed(self, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, Any, MISEConfig]:
        own, model_arguments = argument_classes(name, monkeypatch)
        parser = TrlParser((own, model_arguments, MISEConfig))
        return parser.parse_args_and_config(["--config", str(path_of(name)), "--output_dir", str(tmp_path), *ON_A_CPU])

    def test_is_understood(self, name: str, parsed: tuple[Any, Any, MISEConfig]) -> None:
        own, model, args = parsed
        written = yaml.safe_load(path_of(name).read_text(encoding="utf-8"))
        assert set(TASK_KEYS[name]) <= set(written)
        for key, value in written.items():
            (holder,) = [part for part in parsed if hasattr(part, key)]
            if key not in ("bf16", "output_dir", "report_to"):  # changed above, or by transformers
                assert getattr(holder, key) == value, f"{key} is not what the file says"
        assert "Qwen2.5-7B-Instruct" in model.model_name_or_path and model.use_peft
        assert written["bf16"] is True and args.gradient_checkpointing

    def test_a_batch_is_128_episodes(self, name: str, parsed: tuple[Any, Any, MISEConfig]) -> None:
        args = parsed[2]
        episodes = args.per_device_train_batch_size * args.gradient_accumulation_steps
        assert episodes == 128
        assert episodes % args.num_mini_batches == 0 and args.total_episodes % episodes == 0
        assert parsed[0].train_tasks >= episodes

    def test_an_episode_fits(self, name: str, parsed: tuple[Any, Any, MISEConfig]) -> None:
        args = parsed[2]
        assert args.max_episode_tokens <= 32768, "what Qwen2.5 can read"
        assert args.gae_level == "turn" and 0 < args.gamma <= 1 and args.kl_coef > 0
        assert args.max_turns * args.max_new_tokens < args.max_episode_tokens

    def test_a_wrong_key_is_refused(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own, model_arguments = argument_classes(name, monkeypatch)
        wrong = tmp_path / "wrong.yaml"
        wrong.write_text(path_of(name).read_text(encoding="utf-8") + "\nhindsight_coeff: 1\n", encoding="utf-8")
        with pytest.raises(ValueError, match="hindsight_coeff"):
            TrlParser((own, model_arguments, MISEConfig)).parse_args_and_config(["--config", str(wrong), *ON_A_CPU])

    def test_says_how_it_is_run_and_that_it_was_not(self, name: str) -> None:
        header = path_of(name).read_text(encoding="utf-8").split("\noutput_dir", 1)[0]
        command = f"accelerate launch examples/{CONFIGS[name]}.py --config examples/configs/{name}.yaml"
        assert command in header and "NOT RUN" in header and "Memory" in header and "arXiv 2604.11611" in header
        options = re.findall(r"--env (\w+) ", header)
        assert options == [CONFIGS[name]]

    def test_options_in_comments_are_understood_too(self, name: str) -> None:
        known = {field.name for field in dataclasses.fields(MISEConfig)}
        commented = re.findall(r"^# (\w+): \S+$", path_of(name).read_text(encoding="utf-8"), re.MULTILINE)
        assert "history_window" in commented and set(commented) <= known
