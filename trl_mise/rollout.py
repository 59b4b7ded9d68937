"""Environment -> rollout -> trajectory: many environments side by side, one batched generation per turn. No torch."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .chat import PromptFormat
from .envs.base import EnvironmentFailure, TextEnv
from .types import StopReason, Trajectory, Turn

Generate = Callable[[Sequence[Sequence[int]]], list[list[int]]]
"""Samples a continuation for every context, stop token included if sampled; at most `max_new_tokens` ids each."""


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """Bounds of an episode.

    Args:
        max_turns (`int`): actions per episode.
        max_new_tokens (`int`): sampled tokens per action.
        max_episode_tokens (`int`): total tokens of an episode (prompt, actions and observations); the episode is
            truncated *before* a turn that might not fit.
    """

    max_turns: int
    max_new_tokens: int
    max_episode_tokens: int

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_new_tokens", "max_episode_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(eq=False)
class _Episode:
    """An episode under way, of the task with this index; frozen into a `Trajectory` when it ends."""

    index: int
    env: TextEnv
    task: Mapping[str, Any]
    seed: int | None
    token_ids: list[int]
    instruction: str
    observation: str
    turns: list[Turn] = field(default_factory=list)
    stop_reason: StopReason | None = None
    won: bool | None = None

    def freeze(self) -> Trajectory:
        if self.stop_reason is None:
            raise RuntimeError("an episode that still runs cannot be frozen")
        return Trajectory(
            token_ids=tuple(self.token_ids),
            turns=tuple(self.turns),
            stop_reason=self.stop_reason,
            instruction=self.instruction,
            final_observation=self.observation,
            task=self.task,
            seed=self.seed,
            won=self.won,
        )


def first_message(instruction: str, observation: str) -> str:
    """The first user message: the instruction in front of o_0, unless the observation shows it already."""
    return observation if not instruction or instruction in observation else f"{instruction}\n\n{observation}"


def collect_rollouts(
    tasks: Sequence[Mapping[str, Any]],
    envs: Sequence[TextEnv],
    generate: Generate,
    chat: PromptFormat,
    limits: RolloutLimits,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    refill: bool = False,
) -> list[Trajectory]:
    """Plays one episode per task and returns the trajectories in the order of the tasks.

    Args:
        tasks: dataset rows; each is passed as `reset(seed=row.get("seed"), options=row)`.
        envs: environments to play in side by side.
        generate: batched sampling, see [`Generate`].
        chat: the tokenizer's conversation format.
        limits: bounds of an episode.
        on_progress: called with (finished episodes, all episodes).
        refill (`bool`): an environment whose episode ended takes the next task at once; otherwise the tasks are played
            in waves of `len(envs)`, and the batch shrinks until a wave's last episode has ended.

    Raises:
        EnvironmentFailure: a reset or step breaks the environment contract; the message names the episode.
    """
    if tasks and not envs:
        raise ValueError(f"envs is empty, but there are {len(tasks)} tasks; give at least one environment")
    waiting = deque(enumerate(tasks))
    playing: list[_Episode | None] = [None] * len(envs)
    finished: dict[int, Trajectory] = {}
    while len(finished) < len(tasks):
        if refill or not any(playing):
            for slot, env in enumerate(envs):
                if playing[slot] is None and waiting:
                    playing[slot] = _reset(*waiting.popleft(), env, chat, limits)
        running = [(slot, episode) for slot, episode in enumerate(playing) if episode is not None]
        sampled = generate([episode.token_ids for _, episode in running])
        for (slot, episode), action in zip(running, sampled, strict=True):
            _advance(episode, action, chat, limits)
            if episode.stop_reason is not None:
                finished[episode.index] = episode.freeze()
                playing[slot] = None
        if on_progress is not None:
            on_progress(len(finished), len(tasks))
    return [finished[index] for index in range(len(tasks))]


def _reset(index: int, task: Mapping[str, Any], env: TextEnv, chat: PromptFormat, limits: RolloutLimits) -> _Episode:
    seed = task.get("seed")
    seed = None if seed is None else int(seed)
    observation, info = env.reset(seed=seed, options=task)
    instruction = str(info.get("instruction") or "")
    episode = _Episode(
        index=index,
        env=env,
        task=task,
        seed=seed,
        token_ids=chat.opening(first_message(instruction, observation)),
        instruction=instruction,
        observation=observation,
    )
    if len(episode.token_ids) + limits.max_new_tokens > limits.max_episode_tokens:
        raise EnvironmentFailure(
            f"task {dict(task)!r}: its first prompt has {len(episode.token_ids)} tokens, which leaves no room for an "
            f"action of max_new_tokens={limits.max_new_tokens} within max_episode_tokens={limits.max_episode_tokens}; "
            "raise max_episode_tokens or shorten the first observation"
        )
    return episode


def _advance(episode: _Episode, sampled: list[int], chat: PromptFormat, limits: RolloutLimits) -> None:
    """Books one sampled action, steps the environment, and appends its answer if the episode goes on within limits."""
    start = len(episode.token_ids)
    closed = bool(sampled) and sampled[-1] in chat.stop_token_ids
    action = chat.decode(sampled[:-1] if closed else sampled).strip()
    episode.token_ids.extend(sampled)
    end = len(episode.token_ids)

    observation, reward, terminated, truncated, info = episode.env.step(action)
    if not math.isfinite(reward):
        raise EnvironmentFailure(
            f"task {dict(episode.task)!r}, step {len(episode.turns) + 1}: the environment returned the non-finite "
            f"reward {reward!r} for the action {action!r}; rewards must be finite floats"
        )
    turn = Turn(
        observation=episode.observation,
        action=action,
        reward=float(reward),
        action_span=(start, end),
        result_end=end,
        closed=closed,
        action_valid=bool(info.get("action_valid", True)),
    )
    episode.observation = observation
    episode.stop_reason = _stop_reason(bool(terminated), bool(truncated), len(episode.turns) + 1, limits)
    if info.get("won") is not None:
        episode.won = bool(info["won"])
    episode.turns.append(_append_result(episode, turn, chat, limits))


def _stop_reason(terminated: bool, truncated: bool, num_turns: int, limits: RolloutLimits) -> StopReason | None:
    if terminated:
        return StopReason.TERMINATED
    if truncated:
        return StopReason.ENV_TRUNCATED
    return StopReason.MAX_TURNS if num_turns >= limits.max_turns else None


def _append_result(episode: _Episode, turn: Turn, chat: PromptFormat, limits: RolloutLimits) -> Turn:
    """Appends o_{t+1} if it fits the budget. An episode that has no room for another action is truncated."""
    ids = episode.token_ids
    result = chat.result(episode.observation, closed=turn.closed)
    # A terminated episode has no next state; a truncated one gets the reply prompt, where V(s_T) is read.
    reply_prompt = [] if episode.stop_reason is StopReason.TERMINATED else chat.reply_prompt()
    needed = len(ids) + len(result) + len(reply_prompt)
    if episode.stop_reason is None and needed + limits.max_new_tokens > limits.max_episode_tokens:
        episode.stop_reason = StopReason.TOKEN_BUDGET
    if needed > limits.max_episode_tokens:
        return turn
    ids.extend(result)
    result_end = len(ids)
    ids.extend(reply_prompt)
    return replace(turn, result_end=result_end)
