"""The benchmarks run, at toy size; what they measure there means nothing, and no test looks at it."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables
from benchmarks._common import count_flops, markdown, paired_seconds, peak_bytes
from benchmarks.learning import report
from trl_mise.ppo import TRL_HAS_PPO

FOLDER = Path(tables.__file__).parent


WITH_PPO = pytest.mark.skipif(not TRL_HAS_PPO, reason="this TRL has no PPOTrainer")


@pytest.mark.parametrize(
    "name",
    ["scoring", "rollout", "update", "soak", "attacks", "import_time", pytest.param("vs_ppo_trainer", marks=WITH_PPO)],
)
def test_runs_and_writes_its_table(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new folder" / "result.json"
    result = importlib.import_module(f"benchmarks.{name}").main(
        ["--quick", "--threads", "1", "--device", "cpu", "--json", str(path)]
    )
    assert json.loads(path.read_text(encoding="utf-8")) == result
    assert markdown(result["rows"]) in capsys.readouterr().out
    assert result["machine"]["device"] and len(result["rows"]) > 2
    # What makes a rollout's arms comparable is a column of its table.
    assert {row.get("same tokens") for row in result["rows"]} == ({"true"} if name == "rollout" else {None})


def test_the_readmes_show_the_results() -> None:
    text = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert tables.with_costs(text) == text, "run: python -m benchmarks.tables"
    assert tables.with_learning(text) == text, "run: python -m benchmarks.tables"
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert tables.with_tables(text) == text, "run: python -m benchmarks.tables"
    for path in (FOLDER / "results").glob("*.json"):
        assert f"benchmarks/results/{path.name}" in text, "every result needs the command that makes it"


def test_the_results_page_shows_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = report.RESULTS_PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(report, "RESULTS_PAGE", tmp_path / "results.md")
    monkeypatch.setattr(report, "plot_learning", lambda *args: None)
    monkeypatch.setattr(report, "plot_judges", lambda *args: None)
    report.main()
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == written, (
        "run: python -m benchmarks.learning.report"
    )


def test_paired_runs_take_turns() -> None:
    said: list[str] = []
    seconds = paired_seconds({"a": lambda: said.append("a"), "b": lambda: said.append("b")}, 2, at_least=0.0)
    assert said == ["a", "a", "b", "b", "a", "b", "a", "b"] and set(seconds) == {"a", "b"}


def test_flops_and_bytes() -> None:
    import torch

    a, b = torch.ones(64, 32), torch.ones(32, 16)
    assert count_flops(lambda: a @ b) == 2 * 64 * 32 * 16
    q = torch.ones(1, 2, 5, 4)
    attention: Any = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attention(q, q, q)) == 2 * 2 * (2 * 5 * 5 * 4)

    def work() -> None:
        held = torch.ones(2**20)  # 4 MiB
        for _ in range(3):
            held + 1

    assert 8 * 2**20 <= peak_bytes(work) < 9 * 2**20
