"""Frozen records that travel through the house. They know neither torch nor TRL."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from .written import WrittenVerdict


class StopReason(str, enum.Enum):
    """Why an episode ended. `terminated` is not `truncated`: only a truncated episode is bootstrapped."""

    TERMINATED = "terminated"
    """The environment reached a terminal state; the value of what follows is 0."""
    ENV_TRUNCATED = "env_truncated"
    """The environment cut the episode short (its own step limit)."""
    MAX_TURNS = "max_turns"
    """The rollout's `max_turns` was reached."""
    TOKEN_BUDGET = "token_budget"
    """The next turn did not fit into the rollout's total token budget."""
    ENV_ERROR = "env_error"
    """The environment failed; the episode carries no learning signal."""

    @property
    def truncated(self) -> bool:
        return self in (StopReason.ENV_TRUNCATED, StopReason.MAX_TURNS, StopReason.TOKEN_BUDGET)


def is_success(won: bool | None, episode_return: float) -> bool:
    """The environment's `won` where it gives one, otherwise a return of (at least) 1."""
    return won if won is not None else episode_return >= 1.0 - 1e-6


@dataclass(frozen=True, slots=True)
class Turn:
    """One decision of an episode: the policy read `observation`, wrote `action`, the environment paid `reward`.

    Args:
        observation (`str`): o_t, the text that the policy answered.
        action (`str`): a_t as passed to the environment (decoded, without the stop token, stripped).
        reward (`float`): sparse environment reward of this step.
        action_span (`tuple[int, int]`): half-open span of the *sampled* tokens (stop token included, if sampled)
            in [`Trajectory.token_ids`].
        result_end (`int`): `token_ids[:result_end]` shows everything up to and including o_{t+1}, the result of
            this step; equal to `action_span[1]` where the result is not part of the tokens.
        closed (`bool`): the policy sampled a stop token itself (otherwise it ran into `max_new_tokens`).
        action_valid (`bool`): the environment understood the action.
        sampling_log_probs (`tuple[float, ...]`): with which log-probability each sampled token was sampled, where an
            engine other than the policy itself did so and said it; otherwise empty.
    """

    observation: str
    action: str
    reward: float
    action_span: tuple[int, int]
    result_end: int
    closed: bool = True
    action_valid: bool = True
    sampling_log_probs: tuple[float, ...] = ()

    @property
    def result_in_tokens(self) -> bool:
        return self.result_end > self.action_span[1]


@dataclass(frozen=True, slots=True)
class StepCredit:
    """What the steps of N episodes were given to learn from.

    Args:
        shaping (`tuple[np.ndarray, ...]`): N arrays `(T_n,)`, gate * alpha * n_t: what hindsight added to the step's
            advantage, or to its reward; empty arrays where it added nothing.
        advantages (`tuple[np.ndarray, ...]`): N arrays `(T_n,)`, mean over the step's tokens of the advantage that the
            update used.
    """

    shaping: tuple[np.ndarray, ...]
    advantages: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """What the policy saw at one state of an episode that its context need not hold: the last turns.

    It read `head + token_ids[start:...]`, up to the state's action (or to the end, for the last state).

    Args:
        head (`tuple[int, ...]`): prompt that opens the window: the instruction and its first observation.
        start (`int`): where the episode's `token_ids` go on after it.
    """

    head: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One finished episode, tau = (x, o_0, a_0, ..., a_{T-1}, o_T), with its tokens exactly as sampled.

    Args:
        token_ids (`tuple[int, ...]`): `(L,)` prompt, actions and observations in order; never re-tokenised.
        turns (`tuple[Turn, ...]`): T turns in order.
        stop_reason ([`StopReason`]): why the episode ended.
        instruction (`str`): the task as told to the policy.
        final_observation (`str`): o_T.
        task (`Mapping`): the dataset row that the episode was reset with.
        seed (`int`, *optional*): seed passed to `reset`.
        won (`bool`, *optional*): the environment's own verdict, where it gives one.
        windows (`tuple[Window, ...]`): what the policy saw at each turn, and, where the episode was truncated and it
            fits, at o_T; empty where it saw the whole episode so far.
        error (`str`, *optional*): what went wrong, for `StopReason.ENV_ERROR`.
    """

    token_ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    instruction: str = ""
    final_observation: str = ""
    task: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    won: bool | None = None
    windows: tuple[Window, ...] = ()
    error: str | None = None

    @property
    def failed(self) -> bool:
        """The environment failed: nothing can be learned from this episode."""
        return self.stop_reason is StopReason.ENV_ERROR

    @property
    def num_steps(self) -> int:
        return len(self.turns)

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of the sparse environment rewards."""
        return float(sum(turn.reward for turn in self.turns))

    @property
    def success(self) -> bool:
        """The environment's `won` where it gives one, otherwise a return of (at least) 1."""
        return is_success(self.won, self.episode_return)

    def context(self, step: int) -> tuple[int, ...]:
        """Tokens that the policy read before its action of this step (from 0)."""
        end = self.turns[step].action_span[0]
        if not self.windows:
            return self.token_ids[:end]
        window = self.windows[step]
        return (*window.head, *self.token_ids[window.start : end])

    @property
    def action_mask(self) -> tuple[bool, ...]:
        """`(L,)`, True = sampled by the policy and trainable; from bookkeeping, never from token ids."""
        mask = [False] * len(self.token_ids)
        for turn in self.turns:
            start, end = turn.action_span
            mask[start:end] = [True] * (end - start)
        return tuple(mask)


@dataclass(frozen=True, slots=True)
class HindsightScores:
    """The evaluator's verdicts on every step of every episode, in flat step order (episode by episode).

    Args:
        scores (`np.ndarray`): `(S,)` h_t in [0, 1], S = sum of the episodes' lengths; NaN where a written verdict
            could not be read.
        verdict_probs (`np.ndarray`): `(S, K)` q(e | tau, t) over the K verdicts.
        num_steps (`tuple[int, ...]`): `(N,)` steps of each episode; sums to S.
        method (`str`): how they were computed (a method of `scoring`, or the name of another judge).
        written (`tuple[WrittenVerdict, ...]`): `(S,)` the evaluations, where they were written out; otherwise empty.
    """

    scores: np.ndarray
    verdict_probs: np.ndarray
    num_steps: tuple[int, ...]
    method: str = "packed"
    written: tuple[WrittenVerdict, ...] = ()

    def __post_init__(self) -> None:
        total = sum(self.num_steps)
        if self.scores.shape != (total,) or self.verdict_probs.shape[:1] != (total,):
            raise ValueError(
                f"HindsightScores: num_steps sum to {total} steps, but scores has shape {self.scores.shape} and "
                f"verdict_probs {self.verdict_probs.shape}; give one row per step, in episode order"
            )

    @property
    def readable(self) -> np.ndarray:
        """`(S,)` bool: there is a verdict. What has none is left out everywhere; it is never a score of 0."""
        return np.isfinite(self.scores)

    @property
    def episode_scores(self) -> np.ndarray:
        """`(N,)` mean of each episode's readable scores; NaN where there is none."""
        readable = (scores[np.isfinite(scores)] for scores in self.split())
        return np.array([scores.mean() if len(scores) else np.nan for scores in readable], dtype=np.float64)

    def split_written(self) -> list[tuple[WrittenVerdict, ...]]:
        """The evaluations of each episode; empty tuples where nothing was written."""
        rest = iter(self.written)
        return [tuple(islice(rest, count)) for count in self.num_steps]

    def split(self, values: np.ndarray | None = None) -> list[np.ndarray]:
        """Cuts `(S, ...)` values (default: the scores) into one array per episode."""
        values = self.scores if values is None else values
        return np.split(values, np.cumsum(self.num_steps))[:-1]
