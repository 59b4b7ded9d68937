"""Episodes without an environment: one response per prompt, cut into steps, paid by a reward model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .rollout import Generate, SampledIds
from .token_batch import pad_rows
from .types import StopReason, Trajectory, Turn


class StepCutter:
    """Cuts a response into steps at a delimiter, on token boundaries.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): decodes the response.
        delimiter (`str`, *optional*): literal text that ends a step; one or more newlines by default.
    """

    def __init__(self, tokenizer: Any, delimiter: str | None = None) -> None:
        if delimiter == "":
            raise ValueError("step_delimiter must not be empty; use None for newlines")
        self.tokenizer = tokenizer
        self.pattern = re.compile(r"\n+" if delimiter is None else re.escape(delimiter))

    def cut(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Half-open token spans of the steps; they cover the response, and none is blank (except an all blank one)."""
        text = self.tokenizer.decode(list(token_ids))
        ends = [match.end() for match in self.pattern.finditer(text)]
        if not ends:
            return [(0, len(token_ids))]
        # Decoding prefixes is the only way that is right for every tokenizer. Comparing them with the text, not their
        # lengths: a prefix that ends inside a character's bytes has a replacement character in its place.
        prefixes = [self.tokenizer.decode(list(token_ids[: i + 1])) for i in range(len(token_ids))]
        whole = len(token_ids)
        cuts = sorted({next((i + 1 for i, p in enumerate(prefixes) if p[:end] == text[:end]), whole) for end in ends})
        spans: list[tuple[int, int]] = []
        start = 0
        for cut in [*cuts, len(token_ids)]:
            piece = self.tokenizer.decode(list(token_ids[start:cut]), skip_special_tokens=True)
            if cut > start and piece.strip():
                spans.append((start, cut))
                start = cut
        if start < len(token_ids):  # a blank rest belongs to the last step
            spans = [*spans[:-1], (spans[-1][0] if spans else 0, len(token_ids))]
        return spans


def collect_responses(
    rows: Sequence[Mapping[str, Any]], collator: Any, generate: Generate, cutter: StepCutter
) -> list[Trajectory]:
    """Samples one response per prompt; its steps become the turns of a trajectory, rewards still 0.

    Args:
        rows: dataset rows with `input_ids`.
        collator: the trainer's; its attention mask says which ids are padding.
        generate: batched sampling.
        cutter: cuts the responses into steps.
    """
    batch = collator([dict(row) for row in rows])
    masks = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(batch["input_ids"]).bool()
    prompts = [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], masks, strict=True)]
    trajectories = []
    for prompt, response in zip(prompts, generate(prompts), strict=True):
        turns = tuple(
            Turn(
                observation="",
                action=cutter.tokenizer.decode(response[start:end], skip_special_tokens=True).strip(),
                reward=0.0,
                action_span=(len(prompt) + start, len(prompt) + end),
                result_end=len(prompt) + end,
                closed=False,
                sampling_log_probs=response.log_probs[start:end] if isinstance(response, SampledIds) else (),
            )
            for start, end in cutter.cut(response)
        )
        trajectories.append(
            Trajectory(
                token_ids=(*prompt, *response),
                turns=turns,
                stop_reason=StopReason.TERMINATED,
                instruction=cutter.tokenizer.decode(prompt, skip_special_tokens=True),
            )
        )
    return trajectories


@torch.no_grad()
def reward_model_scores(
    reward_model: Any, rows: Sequence[Sequence[int]], device: torch.device, batch_size: int = 16
) -> list[float]:
    """The reward model's score at the last token of each row, found by the row's length."""
    scores: list[float] = []
    backbone = getattr(reward_model, reward_model.base_model_prefix)
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = pad_rows(part, device)
        hidden = backbone(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        )[0]
        last = torch.tensor([len(row) - 1 for row in part], device=device)
        score = reward_model.score(hidden[torch.arange(len(part), device=device), last])
        scores.extend(score.float().reshape(len(part), -1)[:, 0].tolist())
    return scores


def score_responses(
    trajectories: Sequence[Trajectory],
    reward_model: Any,
    device: torch.device,
    *,
    eos_token_id: int | None,
    missing_eos_penalty: float | None = None,
) -> list[Trajectory]:
    """Pays the reward model's score, the sparse return, on each response's last step.

    A response counts as won if it scores above the batch's mean: a reward model has no success of its own.

    Raises:
        ValueError: a score is not finite; names the response.
    """
    if reward_model is None:
        raise ValueError("reward_model is required without an environment")
    scores = reward_model_scores(reward_model, [t.token_ids for t in trajectories], device)
    paid = []
    for index, (trajectory, score) in enumerate(zip(trajectories, scores, strict=True)):
        if not np.isfinite(score):
            raise ValueError(f"response {index}: reward_model returned the non-finite score {score}")
        response = trajectory.token_ids[trajectory.turns[0].action_span[0] :]
        if missing_eos_penalty is not None and eos_token_id not in response:
            score -= missing_eos_penalty
        last = replace(trajectory.turns[-1], reward=score)
        paid.append(replace(trajectory, turns=(*trajectory.turns[:-1], last)))
    mean = float(np.mean([t.episode_return for t in paid]))
    return [replace(t, won=t.episode_return > mean) for t in paid]
