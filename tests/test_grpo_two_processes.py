"""MISEGRPOTrainer on two real processes (torchrun, gloo): the weights of one, the episodes of both in one file."""

import json
from pathlib import Path

import pytest
from torchrun import left_by_both
from trainer_fakes import largest_difference, make_policy, weights
from two_processes_grpo import TOKENIZER, trainer_of


@pytest.mark.parametrize("num_generations", [4, 8], ids=["a group on each", "one group on both"])
def test_two_are_as_good_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_generations: int) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = trainer_of(tmp_path / "one", 8, num_generations)
    one.train()
    first, second = left_by_both("two_processes_grpo.py", tmp_path / "two", str(num_generations))
    assert first["world"] == second["world"] == 2
    assert largest_difference(first["weights"], second["weights"]) == 0.0
    assert largest_difference(weights(make_policy(TOKENIZER)), weights(one.policy)) > 1e-2
    assert largest_difference(first["weights"], weights(one.policy)) <= 1e-5
    assert first["judge"]["mu"] == pytest.approx(one.hindsight.mu, abs=1e-5)
    records = {
        name: [json.loads(line) for line in (tmp_path / name / "trajectories.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    }
    if num_generations == 4:  # in one of the batches a group is silent beside one that speaks
        earned = [
            {round(sum(t["reward"] for t in r["turns"]), 3) for r in records["one"] if r["update"] == update}
            for update in (1, 2, 3)
        ]
        assert {0.0, 0.7, 1.0} in earned
    for update in (1, 2, 3):
        told = [
            sorted(
                json.dumps([r["instruction"], [turn["action"] for turn in r["turns"]]])
                for r in of
                if r["update"] == update
            )
            for of in records.values()
        ]
        assert told[0] == told[1] and len(told[0]) == 8
