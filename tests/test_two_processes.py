"""Two real processes (torchrun, gloo): they agree, their episodes are all there, and they go on after a kill."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torchrun
from test_resume import UPDATES, assert_equal, trainer_of
from trainer_fakes import largest_difference, weights


def run(folder: Path, kind: str, moment: str = "never", count: int = 1) -> "subprocess.CompletedProcess[str]":
    return torchrun.run("two_processes.py", str(folder), kind, moment, str(count))


def launch(folder: Path, kind: str, moment: str = "never", count: int = 1) -> list[dict[str, Any]] | None:
    """What the two end with; `None` if one was killed."""
    done = run(folder, kind, moment, count)
    if done.returncode == 0:
        return torchrun.saved(folder)
    assert "Signal 9 (SIGKILL)" in done.stderr, done.stderr[-3000:]
    return None


def without_own(left: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same on both: all but the sampling."""
    return {name: value for name, value in left.items() if name not in ("torch", "hindsight", "logs", "episodes")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("whole")
    return launch(folder, "plain"), folder


def test_two_processes_agree(uninterrupted: Any) -> None:
    (first, second), folder = uninterrupted
    assert first["processes"] == second["processes"] == 2
    assert first["step"] == second["step"] == UPDATES
    assert_equal(without_own(first), without_own(second))
    assert not torch.equal(first["torch"], second["torch"])  # they sample on their own


def test_every_episode_of_both_is_written_once(uninterrupted: Any) -> None:
    _, folder = uninterrupted
    records = [json.loads(line) for line in (folder / "trajectories.jsonl").read_text().splitlines()]
    assert [r["update"] for r in records] == [u for u in range(1, UPDATES + 1) for _ in range(8)]
    for update in range(1, UPDATES + 1):
        seeds = [r["seed"] for r in records if r["update"] == update]
        assert len(set(seeds)) == 8, "no task twice in a batch"


@pytest.mark.parametrize(("moment", "count"), [("optimizer step", 7), ("save", 2)])
def test_killed_and_resumed(tmp_path: Path, moment: str, count: int, uninterrupted: Any) -> None:
    """The first process dies; the launcher ends the second."""
    assert launch(tmp_path, "plain", moment, count) is None
    resumed = launch(tmp_path, "plain")
    assert resumed is not None
    for ours, theirs in zip(resumed, uninterrupted[0], strict=True):
        assert_equal(ours, theirs)


def test_two_are_as_good_as_one(tmp_path: Path) -> None:
    """The same tasks and episodes, of uneven lengths: the same weights, but for the order of additions."""
    one = trainer_of(tmp_path / "one", "by the context")
    start = weights(one.actor_critic)
    one.train()
    both = launch(tmp_path / "two", "by the context")
    assert both is not None and both[0]["processes"] == 2
    assert largest_difference(start, weights(one.actor_critic)) > 1e-2
    assert largest_difference(both[0]["weights"], weights(one.actor_critic)) <= 1e-5
    assert both[0]["hindsight"]["mu"] == pytest.approx(one.hindsight.mu, abs=1e-5)
    gates = [state["gate"]["mean_sum"] for state in (both[0]["hindsight"], one.hindsight.state_dict())]
    assert gates[0] == pytest.approx(gates[1], abs=1e-5)


def test_failures_on_one_do_not_stop_the_other(tmp_path: Path) -> None:
    """It has fewer episodes to train on, and so fewer passes to make."""
    both = launch(tmp_path, "broken on one")
    assert both is not None and both[0]["step"] == UPDATES
    assert_equal(without_own(both[0]), without_own(both[1]))
    records = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text().splitlines()]
    assert len(records) == 8 * UPDATES
    assert sum("error" in record for record in records) > 5


def test_a_process_without_a_single_action_ends_both(tmp_path: Path) -> None:
    """With the same words; none is left waiting for the other."""
    stderr = run(tmp_path, "too long on one").stderr
    for rank in (0, 1):
        assert re.search(rf"\[rank{rank}\]: .*EnvironmentFailure: 4 of 8 episodes ended", stderr), stderr[-3000:]


def test_patience_hears_both(tmp_path: Path) -> None:
    alone = trainer_of(tmp_path / "alone", "won on the other")
    alone.train()
    assert alone.hindsight.patience.holds
    both = launch(tmp_path / "two", "won on the other")
    assert both is not None and [left["hindsight"]["patience"] for left in both] == [{"silent": 0}] * 2


@pytest.mark.slow
def test_killed_at_ten_moments_with_an_adapter(tmp_path: Path) -> None:
    whole = launch(tmp_path / "whole", "lora")
    moments = [("rollout", 2), ("update", 1), ("save", 1), ("optimizer step", 5), ("calibrate", 2)] * 2
    deaths = [launch(tmp_path / "killed", "lora", *moment) is None for moment in moments]
    assert sum(deaths) >= 5
    resumed = launch(tmp_path / "killed", "lora")
    assert whole is not None and resumed is not None
    for ours, theirs in zip(resumed, whole, strict=True):
        assert_equal(ours, theirs)
