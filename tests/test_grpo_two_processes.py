"""MISEGRPOTrainer on two real processes (torchrun, gloo): the weights of one, the episodes of both in one file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainer_fakes import largest_difference, make_policy, weights
from two_processes_grpo import TOKENIZER, trainer_of

HERE = Path(__file__).parent


def test_two_are_as_good_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = trainer_of(tmp_path / "one", 8)
    one.train()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(HERE / "two_processes_grpo.py"), str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / "two" / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first["world"] == second["world"] == 2
    assert largest_difference(first["weights"], second["weights"]) == 0.0
    assert largest_difference(weights(make_policy(TOKENIZER)), weights(one.policy)) > 1e-2
    assert largest_difference(first["weights"], weights(one.policy)) <= 1e-5
    assert first["judge"]["mu"] == pytest.approx(one.hindsight.mu, abs=1e-5)
    records = {
        name: [json.loads(line) for line in (tmp_path / name / "trajectories.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    }
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
