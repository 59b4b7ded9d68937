"""Episodes on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from trl_mise.trajectory_log import TrajectoryLog
from trl_mise.types import HindsightScores, StopReason, Trajectory, Turn


def episode(num_turns: int, **kwargs: Any) -> Trajectory:
    turns = tuple(
        Turn(f"room {t}", f"take {t}", float(t == num_turns - 1), (2 * t, 2 * t + 1), 2 * t + 2, action_valid=t > 0)
        for t in range(num_turns)
    )
    return Trajectory(tuple(range(2 * num_turns)), turns, StopReason.TERMINATED, **kwargs)


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_one_line_per_episode_with_its_own_scores(tmp_path: Path) -> None:
    path = tmp_path / "not there yet" / "trajectories.jsonl"
    log = TrajectoryLog(str(path))
    scores = np.array([0.25, 0.75, 0.5])
    verdicts = HindsightScores(scores, np.stack([scores, 1 - scores], 1), (1, 2))
    first = episode(1, task={"goal": "lamp"}, seed=3, instruction="find it", final_observation="the end", won=False)
    log.write(7, [first, episode(2)], verdicts)
    one, two = read(path)  # without closing: a run that dies leaves what it has seen
    log.close()
    assert one == {
        "update": 7,
        "task": {"goal": "lamp"},
        "seed": 3,
        "instruction": "find it",
        "turns": [
            {
                "observation": "room 0",
                "action": "take 0",
                "reward": 1.0,
                "action_valid": False,
                "score": 0.25,
                "verdict_probs": [0.25, 0.75],
            }
        ],
        "final_observation": "the end",
        "return": 1.0,
        "success": False,
        "stop_reason": "terminated",
    }
    assert [(turn["score"], turn["verdict_probs"]) for turn in two["turns"]] == [
        (0.75, [0.75, 0.25]),
        (0.5, [0.5, 0.5]),
    ]
    assert two["seed"] is None and two["success"] is True


def test_without_scores(tmp_path: Path) -> None:
    log = TrajectoryLog(str(tmp_path / "log.jsonl"))
    log.write(0, [episode(2)], None)
    log.close()
    (record,) = read(tmp_path / "log.jsonl")
    assert [sorted(turn) for turn in record["turns"]] == [["action", "action_valid", "observation", "reward"]] * 2


def test_updates_are_appended_and_a_new_run_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = TrajectoryLog(str(path))
    for update in range(3):
        log.write(update, [episode(1)], None)
    log.close()
    assert [record["update"] for record in read(path)] == [0, 1, 2]
    TrajectoryLog(str(path)).close()
    assert read(path) == []


def test_any_text_and_any_task_value(tmp_path: Path) -> None:
    """One record stays one line, and a row's values need not be JSON's."""
    text = "zwei\nZeilen \u2028 “für” 猫 \x85"
    log = TrajectoryLog(str(tmp_path / "log.jsonl"))
    log.write(0, [episode(1, instruction=text, task={"path": Path("a"), "seed": np.int64(5)}, seed=5)], None)
    log.close()
    content = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    assert content.count("\n") == 1
    record = json.loads(content)
    assert record["instruction"] == text and record["task"] == {"path": "a", "seed": 5}
