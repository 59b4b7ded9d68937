"""Episodes on disk: one JSON line each, for people and for reports."""

import json
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .types import HindsightScores, Trajectory
from .written import WrittenVerdict


def trajectory_record(
    update: int,
    trajectory: Trajectory,
    scores: np.ndarray | None,
    verdict_probs: np.ndarray | None,
    written: Sequence[WrittenVerdict] = (),
) -> dict[str, Any]:
    """One episode as JSON values: task, seed, turns with their scores, evaluations and rewards, outcome."""
    turns: list[dict[str, Any]] = []
    for step, turn in enumerate(trajectory.turns):
        record: dict[str, Any] = {
            "observation": turn.observation,
            "action": turn.action,
            "reward": turn.reward,
            "action_valid": turn.action_valid,
        }
        if scores is not None and verdict_probs is not None and np.isfinite(scores[step]):
            record["score"] = round(float(scores[step]), 6)
            record["verdict_probs"] = [round(float(p), 6) for p in verdict_probs[step]]
        if written:
            record["evaluation"] = written[step].text
        turns.append(record)
    return {
        "update": update,
        "task": dict(trajectory.task),
        "seed": trajectory.seed,
        "instruction": trajectory.instruction,
        "turns": turns,
        "final_observation": trajectory.final_observation,
        "return": trajectory.episode_return,
        "success": trajectory.success,
        "stop_reason": trajectory.stop_reason.value,
        **({} if trajectory.error is None else {"error": trajectory.error}),
    }


class TrajectoryLog:
    """Appends the episodes of every update to a JSON lines file; a new run starts a new file.

    Args:
        path (`str`): the file.
        keep_bytes (`int`, *optional*): of an interrupted run that goes on: what comes after them is played again, and
            goes.
    """

    def __init__(self, path: str, keep_bytes: int | None = None) -> None:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        known = os.path.getsize(path) if os.path.exists(path) else 0
        if keep_bytes is not None and known < keep_bytes:
            warnings.warn(
                f"{path} has {known} bytes, fewer than the {keep_bytes} of the run that goes on: earlier episodes are "
                "missing in it; was it moved, or cleaned up?",
                stacklevel=2,
            )
        if keep_bytes is not None and known:
            os.truncate(path, min(known, keep_bytes))
        # Bytes, so that the position is one everywhere.
        self._file = open(path, "wb" if keep_bytes is None else "ab")  # noqa: SIM115 (open for the whole run)

    @property
    def num_bytes(self) -> int:
        """Written so far, all on its way to the disk."""
        return self._file.tell()

    def write(self, update: int, trajectories: Sequence[Trajectory], scores: HindsightScores | None) -> None:
        per_episode = scores.split() if scores is not None else [None] * len(trajectories)
        probs = scores.split(scores.verdict_probs) if scores is not None else [None] * len(trajectories)
        written = scores.split_written() if scores is not None else [()] * len(trajectories)
        for of_episode in zip(trajectories, per_episode, probs, written, strict=True):
            record = trajectory_record(update, *of_episode)
            line = json.dumps(record, ensure_ascii=False, default=_plain) + "\n"
            self._file.write(line.encode("utf-8"))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _plain(value: Any) -> Any:
    """What JSON does not know: NumPy's numbers stay numbers, anything else is written out."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
