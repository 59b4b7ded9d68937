"""docs/quickstart.md: its file and its commands, as they stand, with a tiny stand-in under the model's name."""

import ast
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from documents import ROOT, blocks_in, shell_lines, text_of
from stand_in import offline, put_into_cache, taught_policy, tokenizer_for

from trl_mise.rollout import RolloutLimits

PAGE = "docs/quickstart.md"
TEXT = text_of(PAGE)
(FILE,) = [block.code for block in blocks_in(TEXT, PAGE) if block.language == "python"]
COMMANDS = [
    line
    for block in blocks_in(TEXT, PAGE)
    if block.language == "bash" and block.test == "commands"
    for line in shell_lines(block.code)
    if line.startswith("trl-mise ")
]


@pytest.fixture(scope="module")
def stand_in() -> tuple[Any, Any]:
    """A policy that says one colour a turn, the right one or another, and its tokenizer."""
    spoken = [node.value for node in ast.walk(ast.parse(FILE)) if isinstance(node, ast.Constant)]
    tokenizer = tokenizer_for(text for text in spoken if isinstance(text, str))
    scope: dict[str, Any] = {"__name__": "buttons"}
    exec(compile(FILE, PAGE, "exec"), scope)

    def act(env: Any, rng: random.Random) -> str:
        return rng.choice([env.wanted[len(env.pressed)], *env.wanted])

    return taught_policy(tokenizer, scope["Buttons"], act, RolloutLimits(4, 8, 512)), tokenizer


@pytest.fixture
def folder(tmp_path: Path, stand_in: tuple[Any, Any]) -> Path:
    """Where the reader is: the file under its name, and the stand-in in the hub's cache."""
    (name,) = re.findall(r'"(Qwen/[^"]+)"', FILE)
    put_into_cache(tmp_path / "hub_home", name, *stand_in)
    (saved_as,) = re.findall(r"Save this as `([\w.]+)`", TEXT)
    (tmp_path / saved_as).write_text(FILE, encoding="utf-8")
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=offline(folder / "hub_home", [ROOT]),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_it_is_as_short_as_it_says() -> None:
    lines = [line for line in FILE.splitlines() if line.strip() and not line.strip().startswith("#")]
    (said,) = re.findall(r"one file of (\d+) lines", TEXT)
    assert len(lines) == int(said) < 30
    assert max(map(len, FILE.splitlines())) <= 119


def test_the_file_runs_as_it_stands(folder: Path) -> None:
    """Evaluated before and after, trained on every task three times, saved."""
    output = run(folder, "buttons.py")
    evaluations = dict(re.findall(r"^(before|after): (\{.*\})$", output, re.MULTILINE))
    measured = {when: ast.literal_eval(text) for when, text in evaluations.items()}
    assert [measured[when]["eval_episodes"] for when in ("before", "after")] == [64, 64]
    assert measured["after"]["eval_error_rate"] == 0 and measured["after"]["eval_episode_length"] == 4
    saved = folder / "runs" / "buttons"
    episodes = records(saved / "trajectories.jsonl")
    assert len(episodes) == 1152 and max(episode["update"] for episode in episodes) == 36
    assert f"{len(episodes):,} \nepisodes in 36 updates".replace(" \n", "\n") in TEXT
    assert sorted({episode["seed"] for episode in episodes}) == list(range(384))
    assert all(0 <= turn["score"] <= 1 for episode in episodes for turn in episode["turns"])
    adapter = safetensors.torch.load_file(saved / "adapter_model.safetensors")
    # B begins at zero: the adapter has learned something.
    assert adapter and all(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    assert (saved / "value_head.safetensors").is_file() and (saved / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "trl_mise" / "cli.py").is_file(), reason="this checkout has no command line")
def test_the_commands_run(folder: Path) -> None:
    assert [command.split()[1] for command in COMMANDS] == ["check-env", "train", "eval", "report"]
    outputs = [run(folder, "-m", "trl_mise.cli", *command.split()[1:]) for command in COMMANDS]
    assert "buttons:Buttons keeps the contract" in outputs[0]
    assert re.search(r"^success 0\.\d\d before training, 0\.\d\d after \(64 held-out tasks", outputs[1], re.MULTILINE)
    assert len(records(folder / "runs" / "buttons-cli" / "trajectories.jsonl")) == 1152
    assert outputs[2].startswith("buttons:Buttons, test split, model agent, seed 0\n")
    assert re.search(r"^episodes +100$", outputs[2], re.MULTILINE)
    report = (folder / "buttons.html").read_text(encoding="utf-8")
    assert "buttons" in report and "</html>" in report


def records(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
