"""Completions of TRL's GRPOTrainer as trajectories: what the policy sampled in one go is a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .chat import PromptFormat
from .serialization import plain_task
from .single_turn import StepCutter
from .types import StopReason, Trajectory, Turn


@dataclass(frozen=True)
class CompletionEpisodes:
    """N of a batch's B completions, as episodes.

    Args:
        trajectories (`list[Trajectory]`): N episodes.
        rows (`np.ndarray`): `(N,)` which completion each of them is. The others have no token to train on (masked
            because they were cut off) or no reward.
        step_of_token (`Tensor`): `(B, C)` the step, from 0, that sampled a completion's token; -1 elsewhere.
    """

    trajectories: list[Trajectory]
    rows: np.ndarray
    step_of_token: Tensor

    def per_token(self, step_values: Sequence[np.ndarray]) -> Tensor:
        """One array `(T_n,)` of step values per episode, as `(B, C)` with 0 where no step sampled the token."""
        values = torch.zeros(self.step_of_token.shape, dtype=torch.float32, device=self.step_of_token.device)
        for row, of_episode in zip(self.rows.tolist(), step_values, strict=True):
            steps = self.step_of_token[row]
            table = torch.as_tensor(of_episode, dtype=values.dtype, device=values.device)
            values[row] = torch.where(steps >= 0, table[steps.clamp(min=0)], 0.0)
        return values


def completion_episodes(
    batch: Mapping[str, Any],
    returns: Sequence[float],
    chat: PromptFormat,
    cutter: StepCutter,
    *,
    tasks: Sequence[Mapping[str, Any]],
    success_return: float = 1.0,
) -> CompletionEpisodes:
    """What GRPOTrainer generated, as trajectories.

    A step is a run of sampled tokens: the tool mask says which tokens tools wrote. Without tools a completion is one
    run, and is cut into steps at the delimiter.

    Args:
        batch (`Mapping`): `prompt_ids`, `prompt_mask` `(B, P)`; `completion_ids`, `completion_mask` `(B, C)`; with
            tools `tool_mask` `(B, C)`, 0 where a tool wrote the token.
        returns (`Sequence[float]`): `(B,)` weighted sums of the rewards; NaN where there is none.
        chat ([`PromptFormat`]): decodes, and knows how a message is closed.
        cutter ([`StepCutter`]): cuts completions without tools.
        tasks (`Sequence[Mapping]`): `(B,)` the dataset's rows.
        success_return (`float`): an episode with at least this return is won.
    """
    prompts = _kept(batch["prompt_ids"], batch["prompt_mask"])
    completions = _kept(batch["completion_ids"], batch["completion_mask"])
    with_tools = batch.get("tool_mask") is not None
    step_of_token = torch.full_like(batch["completion_ids"], -1)
    trajectories, rows = [], []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if not completion or not np.isfinite(returns[row]):
            continue
        if with_tools:
            sampled = batch["tool_mask"][row][batch["completion_mask"][row].bool()].bool().tolist()
            spans = _runs(sampled)
        else:
            spans = cutter.cut(completion)
        if not spans:
            continue
        turns, rest = _turns(prompt, completion, spans, chat, returns[row], cuts=not with_tools)
        trajectories.append(
            Trajectory(
                token_ids=(*prompt, *completion),
                turns=turns,
                stop_reason=StopReason.TERMINATED if turns[-1].closed else StopReason.TOKEN_BUDGET,
                instruction=chat.decode(prompt).strip(),
                final_observation=rest,
                task=plain_task(tasks[row]),
                won=bool(returns[row] >= success_return - 1e-6),
            )
        )
        rows.append(row)
        # Where the kept tokens stand in the padded row.
        places = batch["completion_mask"][row].bool().nonzero().flatten()
        for step, (start, end) in enumerate(spans):
            step_of_token[row, places[start:end]] = step
    return CompletionEpisodes(trajectories, np.array(rows, dtype=int), step_of_token)


def _turns(
    prompt: list[int],
    completion: list[int],
    spans: Sequence[tuple[int, int]],
    chat: PromptFormat,
    episode_return: float,
    *,
    cuts: bool,
) -> tuple[tuple[Turn, ...], str]:
    """The turns, and what came after the last one."""
    offset = len(prompt)
    starts_of_next = [start for start, _ in spans[1:]] + [len(completion)]
    observation = chat.decode(prompt).strip()  # what the first step answers is the task itself
    turns = []
    for index, ((start, end), next_start) in enumerate(zip(spans, starts_of_next, strict=True)):
        result = completion[end:next_start]
        is_last = index == len(spans) - 1
        # Between the steps of one message nothing is closed; the last step may have sampled the stop token.
        closed = completion[end - 1] in chat.stop_token_ids and (is_last or not cuts)
        seen = len(result) - chat.closing_length(result)
        turns.append(
            Turn(
                observation=observation,
                action=chat.decode(completion[start:end]).strip(),
                reward=float(episode_return) if is_last else 0.0,
                action_span=(offset + start, offset + end),
                result_end=offset + end + seen,
                closed=closed,
            )
        )
        observation = chat.decode(result[:seen]).strip()
    return tuple(turns), observation


def _kept(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The unpadded rows of `(B, L)` ids."""
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Half-open spans of the runs of True."""
    edges = np.flatnonzero(np.diff([0, *map(int, flags), 0]))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
