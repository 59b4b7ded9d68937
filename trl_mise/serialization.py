"""Episodes as plain JSON values: for `trajectories.jsonl` and for the replay buffer in a checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from .types import StopReason, Trajectory, Turn, Window


def trajectory_to_dict(trajectory: Trajectory) -> dict[str, Any]:
    """The episode as JSON values; [`trajectory_from_dict`] gives an equal one back, also after `json.dumps`/`loads`.

    In `task`, numpy scalars and arrays and tuples become plain numbers and lists.

    Raises:
        TypeError: `task` holds something that JSON cannot, and the message says where.
    """
    return {
        "token_ids": [int(token) for token in trajectory.token_ids],
        "turns": [_turn_to_dict(turn) for turn in trajectory.turns],
        "stop_reason": trajectory.stop_reason.value,
        "instruction": trajectory.instruction,
        "final_observation": trajectory.final_observation,
        "task": _to_json(trajectory.task, "task"),
        "seed": None if trajectory.seed is None else int(trajectory.seed),
        "won": None if trajectory.won is None else bool(trajectory.won),
        "windows": [{"head": [int(token) for token in w.head], "start": int(w.start)} for w in trajectory.windows],
        "error": trajectory.error,
    }


def trajectory_from_dict(state: Mapping[str, Any]) -> Trajectory:
    """The inverse of [`trajectory_to_dict`]; other keys (`trajectories.jsonl` has more) are ignored."""
    missing = [name for name in ("token_ids", "turns", "stop_reason") if name not in state]
    if missing:
        raise ValueError(f"trajectory_from_dict: {missing} missing among the keys {sorted(state)}; not an episode?")
    return Trajectory(
        token_ids=tuple(state["token_ids"]),
        turns=tuple(_turn_from_dict(turn) for turn in state["turns"]),
        stop_reason=StopReason(state["stop_reason"]),
        instruction=state.get("instruction", ""),
        final_observation=state.get("final_observation", ""),
        task=dict(state.get("task", {})),
        seed=state.get("seed"),
        won=state.get("won"),
        windows=tuple(Window(tuple(w["head"]), w["start"]) for w in state.get("windows", ())),
        error=state.get("error"),
    )


def plain_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's row with what JSON cannot hold written out, for rows that are only kept to be looked at."""
    plain = {}
    for name, value in task.items():
        try:
            plain[str(name)] = _to_json(value, "task")
        except TypeError:
            plain[str(name)] = str(value)
    return plain


def _turn_to_dict(turn: Turn) -> dict[str, Any]:
    start, end = turn.action_span
    plain = {
        "reward": float(turn.reward),
        "action_span": [int(start), int(end)],
        "result_end": int(turn.result_end),
        "closed": bool(turn.closed),
        "action_valid": bool(turn.action_valid),
        "sampling_log_probs": [float(value) for value in turn.sampling_log_probs],
    }
    return asdict(turn) | plain


def _turn_from_dict(state: Mapping[str, Any]) -> Turn:
    start, end = state["action_span"]
    return Turn(
        observation=state["observation"],
        action=state["action"],
        reward=state["reward"],
        action_span=(start, end),
        result_end=state["result_end"],
        closed=state["closed"],
        action_valid=state["action_valid"],
        sampling_log_probs=tuple(state.get("sampling_log_probs", ())),
    )


def _to_json(value: Any, where: str) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _to_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise TypeError(
        f"{where} is {value!r} ({type(value).__name__}), which JSON cannot hold; dataset rows may carry strings, "
        f"numbers, booleans, None, lists and dictionaries with string keys"
    )
