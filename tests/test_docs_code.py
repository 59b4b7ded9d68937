"""The Python blocks of the documentation's pages, executed as they stand."""

import inspect
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from documents import ROOT, blocks_in, documents, text_of
from fakes import byte_tokenizer, tiny_llama
from trl import GRPOTrainer

from trl_mise import MISEConfig, MISEGRPOConfig, MISEGRPOTrainer, MISETrainer
from trl_mise.envs.kitchen import STATION_WORDS, KitchenEnv
from trl_mise.envs.registry import ENVIRONMENTS


def run_blocks(document: str, *names: str, scope: dict[str, Any] | None = None) -> dict[str, Any]:
    """Executes the blocks behind `<!-- test: NAME -->`, one after the other in one scope."""
    code = {block.test: block for block in blocks_in(text_of(document), document) if block.language == "python"}
    scope = {"__name__": "page", **(scope or {})}
    for name in names:
        exec(compile(code[name].code, f"{document} ({name})", "exec"), scope)
    return scope


def play(env: Any, actions: list[str], **reset: Any) -> list[Any]:
    """The answers of an episode."""
    env.reset(**reset)
    answers = [env.step(action) for action in actions]
    env.close()
    return answers


def test_the_environment_page(capsys: pytest.CaptureFixture[str]) -> None:
    scope = run_blocks("docs/environments.md", "contract", "agents")
    shown = capsys.readouterr().out
    # Three wheels of three letters, by chance and by plan.
    assert 0 < scope["by_chance"].success.low < 1 / 27 < scope["by_chance"].success.high
    assert scope["by_plan"].success.value == 1 and shown.endswith("\n1.0\n")
    answers = play(scope["VaultEnv"](), ["q", "A", "A"], seed=3, options={"wheels": 2})
    assert answers[0][4] == {"action_valid": False} and answers[0][0].endswith("Wheel 1 of 2.")
    assert answers[2][2] and answers[2][4]["won"] == (answers[2][1] == 1.0)


def test_the_adapters() -> None:
    pytest.importorskip("gymnasium")
    lake = run_blocks("docs/environments.md", "gymnasium")["factory"]()
    right = ["down", "down", "right", "right", "down", "right"]
    assert play(lake, right, seed=0)[-1][:4] == ("You are on field 15 of a 4 x 4 lake, rows from 0.", 1.0, True, False)

    tools = run_blocks("docs/environments.md", "trl_tools")
    call = tools["format_tool_call"]
    guesses = [call("guess", {"number": number}) for number in (9, 4)]
    answers = play(tools["factory"](), guesses, options={"secret": 4})
    assert [answer[:3] for answer in answers] == [
        ("Too large.", 0.0, False),
        ("Right.\n\nThe task has ended. Reward: 1", 1.0, True),
    ]

    echo = run_blocks("docs/environments.md", "openenv")["factory"]()
    assert [answer[:3] for answer in play(echo, ["hello", "hello"])] == [("1 of 2", 0.0, False), ("2 of 2", 1.0, True)]


def test_the_registry() -> None:
    scope = run_blocks("docs/environments.md", "registry")
    assert len(scope["rows"]) == 3 and scope["env"].stations == STATION_WORDS[:4]


def test_the_environments_that_ship_have_the_columns_that_the_page_names() -> None:
    page = text_of("docs/environments.md")
    for name, spec in ENVIRONMENTS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert spec.environment.replace(":", ".") in row
        assert spec.extra is None or f"trl-mise[{spec.extra}]" in row
        if spec.is_installed:
            columns = set(spec.make_tasks("train", 1)[0])
            assert all(f"`{column}`" in row.rsplit("|", 2)[1] for column in columns), (name, columns)


def test_from_ppo_to_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: the metrics that keep their names are logged, and those that the page says are gone are not."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer("chatml")
    model = tiny_llama(len(tokenizer), max_position_embeddings=2048)
    trainer = run_blocks("docs/migrating-ppo.md", "ppo_environment", scope={"tokenizer": tokenizer, "model": model})[
        "trainer"
    ]
    assert trainer.state.episode == 64 and trainer.environment_factory is KitchenEnv
    logged = {name for entry in trainer.state.log_history for name in entry}
    page = text_of("docs/migrating-ppo.md")
    stay = page[page.index("Names of metrics stay") : page.index("Not there:")]
    gone = page[page.index("Not there:") : page.index("New: `env/")]
    assert len(names_in(stay)) >= 12 and names_in(stay) <= logged
    assert len(names_in(gone)) == 5 and not names_in(gone) & logged
    assert {name.split("/")[0] for name in logged} >= {"env", "hindsight", "mise", "calibration"}


def names_in(text: str) -> set[str]:
    return set(text.split("`")[1::2])


def test_from_grpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer("chatml")
    model = tiny_llama(len(tokenizer), max_position_embeddings=512)
    trainer = run_blocks("docs/migrating-grpo.md", "grpo_swap", scope={"tokenizer": tokenizer, "model": model})[
        "trainer"
    ]
    assert trainer.uses_hindsight and trainer.state.global_step == 2
    assert (tmp_path / "runs" / "sheep" / "trajectories.jsonl").read_text(encoding="utf-8").count("\n") == 16
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert "hindsight/score_mean" in logged and isinstance(trainer.train_dataset, Dataset)


def test_how_often_a_group_has_no_signal() -> None:
    """docs/migrating-grpo.md: with a success rate of 1% and groups of 8, more than nine of ten."""
    assert math.pow(0.99, 8) + math.pow(0.01, 8) > 0.9


# Names in the text

PAGES = [name for name in documents() if name.startswith("docs/") and "/api/" not in name]
METRIC = re.compile(r"`((?:env|hindsight|mise|calibration|policy|loss|objective|val|sampling)/[a-z_]+)`")
OTHERS = {
    *("action_valid", "admissible_actions", "max_score"),  # of an environment's info
    *("check_env", "as_trl_environment", "make_action", "list_tools", "get_reward", "on_step_end"),
    *("chat_template", "pad_token", "eos_token", "target_modules", "env_mask", "eval_success", "max_steps"),
}
"""What is no option."""


def known_names() -> set[str]:
    configs = {field.name for config in (MISEConfig, MISEGRPOConfig) for field in fields(config)}
    trainers = (MISETrainer, MISEGRPOTrainer, GRPOTrainer)
    return configs | {name for trainer in trainers for name in inspect.signature(trainer).parameters} | OTHERS


@pytest.mark.parametrize("document", PAGES)
def test_the_options_that_a_page_names_exist(document: str) -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)(?:=[^`]*)?`", text_of(document)))
    assert sorted(named - known_names()) == []


@pytest.mark.parametrize("document", PAGES)
def test_the_metrics_that_a_page_names_exist(document: str) -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "trl_mise").glob("*.py"))
    gone = {"objective/non_score_reward", "objective/rlhf_reward", "val/ratio_var", "val/num_eos_tokens"}
    named = {name for name in METRIC.findall(text_of(document)) if not name.endswith("_")} - gone
    assert [name for name in sorted(named) if f'"{name}"' not in sources] == []


@pytest.mark.parametrize("document", PAGES)
def test_the_files_that_a_page_names_exist(document: str) -> None:
    named = re.findall(r"\b(?:trl_mise|examples|tests|benchmarks)/[\w/]+\.(?:py|md|yaml|json)\b", text_of(document))
    linked = re.findall(r"\]\(((?:\.\./|[\w/-]+\.md)[^)#\s]*)", text_of(document))
    missing = [path for path in named if not (ROOT / path).is_file()]
    missing += [path for path in linked if not (ROOT / document).parent.joinpath(path).exists()]
    assert missing == []
