"""Episodes on disk: one JSON line each, for people and for reports."""

import json
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .types import HindsightScores, StepCredit, Trajectory
from .written import WrittenVerdict

EPISODES_NAME, EVALUATIONS_NAME = "trajectories.jsonl", "evaluations.jsonl"


def trajectory_record(
    update: int,
    trajectory: Trajectory,
    scores: np.ndarray | None,
    verdict_probs: np.ndarray | None,
    written: Sequence[WrittenVerdict] = (),
    shaping: Sequence[float] = (),
    advantages: Sequence[float] = (),
) -> dict[str, Any]:
    """One episode as JSON values: task, seed, turns with their scores, evaluations, rewards and credit, outcome.

    Args:
        update (`int`): that played it, from 1; of an evaluation, the updates done before it.
        trajectory ([`Trajectory`]): T turns.
        scores (`np.ndarray`, *optional*): `(T,)` hindsight scores.
        verdict_probs (`np.ndarray`, *optional*): `(T, K)`.
        written (`Sequence[WrittenVerdict]`): T evaluations, or none.
        shaping (`Sequence[float]`), advantages (`Sequence[float]`): T numbers each, or none, see [`StepCredit`].
    """
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
        if len(shaping):
            record["shaping"] = round(float(shaping[step]), 6)
        if len(advantages):
            record["advantage"] = round(float(advantages[step]), 6)
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

    def write(
        self,
        update: int,
        trajectories: Sequence[Trajectory],
        scores: HindsightScores | None,
        credit: StepCredit | None = None,
        **more: Any,
    ) -> None:
        """A line per episode.

        Args:
            update (`int`): that played them.
            trajectories (`Sequence[Trajectory]`): N episodes.
            scores ([`HindsightScores`], *optional*): of the same episodes.
            credit ([`StepCredit`], *optional*): of the same episodes.
            more: what else belongs into every record.
        """
        nothing = [()] * len(trajectories)
        per_episode = scores.split() if scores is not None else [None] * len(trajectories)
        probs = scores.split(scores.verdict_probs) if scores is not None else [None] * len(trajectories)
        written = scores.split_written() if scores is not None else nothing
        given = (credit.shaping, credit.advantages) if credit is not None else (nothing, nothing)
        for of_episode in zip(trajectories, per_episode, probs, written, *given, strict=True):
            record = {**trajectory_record(update, *of_episode), **more}
            line = json.dumps(record, ensure_ascii=False, default=_plain) + "\n"
            # An environment's text may hold half a surrogate pair, which UTF-8 cannot; JSON's escape can.
            self._file.write(line.encode("utf-8", errors="backslashreplace"))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _plain(value: Any) -> Any:
    """What JSON does not know: NumPy's numbers stay numbers, anything else is written out."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
