"""Environment -> rollout -> trajectory: many environments side by side, one batched generation per turn. No torch."""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .chat import PromptFormat
from .envs.answers import ResetAnswer, StepAnswer, checked_reset, checked_step
from .envs.base import BackgroundEnv, EnvironmentFailure, TextEnv
from .history import first_message, widest_window
from .types import StopReason, Trajectory, Turn, Window

logger = logging.getLogger(__name__)


class SampledIds(list[int]):
    """Sampled ids that know with which log-probability their engine sampled each of them.

    Args:
        ids (`Sequence[int]`): stop token included if sampled.
        log_probs (`Sequence[float]`): as many, of the tempered distribution that was sampled from.
    """

    def __init__(self, ids: Sequence[int], log_probs: Sequence[float]) -> None:
        super().__init__(ids)
        if len(ids) != len(log_probs):
            raise ValueError(f"{len(log_probs)} log_probs for {len(ids)} sampled ids; give one for each")
        self.log_probs = tuple(map(float, log_probs))


Generate = Callable[[Sequence[Sequence[int]]], Sequence[list[int]]]
"""Samples a continuation for every context, stop token included if sampled; at most `max_new_tokens` ids each.

An engine whose arithmetic is not the trainer's gives [`SampledIds`]: then the difference is measured and corrected.
"""


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """Bounds of an episode.

    Args:
        max_turns (`int`): actions per episode.
        max_new_tokens (`int`): sampled tokens per action.
        max_episode_tokens (`int`): total tokens of an episode (prompt, actions and observations); the episode is
            truncated *before* a turn that might not fit. With `history_window`, tokens of what the policy reads at one
            turn and of its action; older turns leave the window before the episode is truncated.
        history_window (`int`, *optional*): the policy sees the instruction and so many turns before the present
            observation; all of them by default.
    """

    max_turns: int
    max_new_tokens: int
    max_episode_tokens: int
    history_window: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_new_tokens", "max_episode_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.history_window is not None and self.history_window < 0:
            raise ValueError(f"history_window must be at least 0, got {self.history_window}; None shows all turns")


@dataclass(eq=False)
class _Episode:
    """An episode under way, of the task with this index; frozen into a `Trajectory` when it ends."""

    index: int
    env: TextEnv
    task: Mapping[str, Any]
    seed: int | None
    token_ids: list[int] = field(default_factory=list)
    instruction: str = ""
    observation: str = ""
    turns: list[Turn] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    stop_reason: StopReason | None = None
    won: bool | None = None
    error: str | None = None

    @property
    def context(self) -> list[int]:
        """What the policy reads now."""
        if not self.windows:
            return self.token_ids
        return [*self.windows[-1].head, *self.token_ids[self.windows[-1].start :]]

    def fail(self, call: str, error: Exception) -> None:
        self.stop_reason = StopReason.ENV_ERROR
        said = str(error) if isinstance(error, EnvironmentFailure) else f"{type(error).__name__}: {error}"
        self.error = f"task {dict(self.task)!r}, {call}: {said}"
        logger.warning("the environment failed, its episode is left out: %s", self.error)

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
            windows=tuple(self.windows),
            error=self.error,
        )


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

    An environment that raises, or answers something that is no answer, ends its episode with
    `StopReason.ENV_ERROR`; the others go on. Its next episode begins, as always, with `reset`.

    Args:
        tasks: dataset rows; each is passed as `reset(seed=row.get("seed"), options=row)`.
        envs: environments to play in side by side; [`BackgroundEnv`]s work at the same time.
        generate: batched sampling, see [`Generate`].
        chat: the tokenizer's conversation format.
        limits: bounds of an episode.
        on_progress: called with (finished episodes, all episodes).
        refill (`bool`): an environment whose episode ended takes the next task at once; otherwise the tasks are played
            in waves of `len(envs)`, and the batch shrinks until a wave's last episode has ended.
    """
    if tasks and not envs:
        raise ValueError(f"envs is empty, but there are {len(tasks)} tasks; give at least one environment")
    waiting = deque(enumerate(tasks))
    playing: list[_Episode | None] = [None] * len(envs)
    finished: dict[int, Trajectory] = {}
    while len(finished) < len(tasks):
        if refill or not any(playing):
            free = [slot for slot, episode in enumerate(playing) if episode is None][: len(waiting)]
            opened = _open([waiting.popleft() for _ in free], [envs[slot] for slot in free], chat, limits)
            playing = [opened.pop(0) if slot in free else episode for slot, episode in enumerate(playing)]
        running = [episode for episode in playing if episode is not None and episode.stop_reason is None]
        if running:
            _advance(running, generate([episode.context for episode in running]), chat, limits)
        for slot, episode in enumerate(playing):
            if episode is not None and episode.stop_reason is not None:
                finished[episode.index] = episode.freeze()
                playing[slot] = None
        if on_progress is not None:
            on_progress(len(finished), len(tasks))
    return [finished[index] for index in range(len(tasks))]


def _open(
    tasks: Sequence[tuple[int, Mapping[str, Any]]],
    envs: Sequence[TextEnv],
    chat: PromptFormat,
    limits: RolloutLimits,
) -> list[_Episode]:
    """Resets one environment to each of the numbered tasks."""
    opened = []
    for (index, task), env in zip(tasks, envs, strict=True):
        seed = task.get("seed")
        episode = _Episode(index, env, task, None if seed is None else int(seed))
        opened.append((episode, _start_reset(episode)))
    for episode, fetch in opened:
        try:
            answer = fetch()
        except Exception as error:  # whatever an environment raises, the other episodes go on
            episode.fail("reset", error)
        else:
            _begin(episode, answer, chat, limits)
    return [episode for episode, _ in opened]


def _advance(
    running: Sequence[_Episode], sampled: Sequence[list[int]], chat: PromptFormat, limits: RolloutLimits
) -> None:
    """Books one sampled action per episode, steps the environments, and books what they answer."""
    acted = []
    for episode, action_ids in zip(running, sampled, strict=True):
        turn = _act(episode, action_ids, chat)
        acted.append((episode, turn, _start_step(episode.env, turn.action)))
    for episode, turn, fetch in acted:
        try:
            answer = fetch()
        except Exception as error:
            # What was sampled and never answered is no turn.
            del episode.token_ids[turn.action_span[0] :]
            del episode.windows[len(episode.turns) :]
            episode.fail(f"step {len(episode.turns) + 1}, action {_short(turn.action)}", error)
        else:
            _observe(episode, turn, answer, chat, limits)


def _start_reset(episode: _Episode) -> Callable[[], ResetAnswer]:
    env, seed, task = episode.env, episode.seed, episode.task
    if isinstance(env, BackgroundEnv):
        env.begin_reset(seed=seed, options=task)
        return lambda: checked_reset(env.result())
    return lambda: checked_reset(env.reset(seed=seed, options=task))


def _start_step(env: TextEnv, action: str) -> Callable[[], StepAnswer]:
    if isinstance(env, BackgroundEnv):
        env.begin_step(action)
        return lambda: checked_step(env.result())
    return lambda: checked_step(env.step(action))


def _begin(episode: _Episode, answer: ResetAnswer, chat: PromptFormat, limits: RolloutLimits) -> None:
    episode.observation = answer.observation
    episode.instruction = str(answer.info.get("instruction") or "")
    episode.token_ids = chat.opening(first_message(episode.instruction, episode.observation))
    if len(episode.token_ids) + limits.max_new_tokens > limits.max_episode_tokens:
        too_long = (
            f"the first prompt has {len(episode.token_ids)} tokens, which leaves no room for an action of "
            f"max_new_tokens={limits.max_new_tokens} within max_episode_tokens={limits.max_episode_tokens}; "
            "raise max_episode_tokens or shorten the first observation"
        )
        episode.fail("reset", EnvironmentFailure(too_long))
    else:
        _open_window(episode, chat, limits)


def _act(episode: _Episode, sampled: list[int], chat: PromptFormat) -> Turn:
    """Appends the sampled ids to the episode and decodes what they say."""
    start = len(episode.token_ids)
    closed = bool(sampled) and sampled[-1] in chat.stop_token_ids
    action = chat.decode(sampled[:-1] if closed else sampled).strip()
    episode.token_ids.extend(sampled)
    end = len(episode.token_ids)
    return Turn(
        observation=episode.observation,
        action=action,
        reward=0.0,
        action_span=(start, end),
        result_end=end,
        closed=closed,
        sampling_log_probs=sampled.log_probs if isinstance(sampled, SampledIds) else (),
    )


def _observe(episode: _Episode, turn: Turn, answer: StepAnswer, chat: PromptFormat, limits: RolloutLimits) -> None:
    """Books the environment's answer; the episode goes on if it has not ended and is within its limits."""
    valid = bool(answer.info.get("action_valid", True))
    episode.observation = answer.observation
    episode.stop_reason = stop_reason(answer, len(episode.turns) + 1, limits.max_turns)
    if answer.info.get("won") is not None:
        episode.won = bool(answer.info["won"])
    answered = _append_result(episode, replace(turn, reward=answer.reward, action_valid=valid), chat, limits)
    episode.turns.append(answered)
    # V(s_T) is read in a window of its own where an episode was cut short.
    if episode.stop_reason is not StopReason.TERMINATED and not _open_window(episode, chat, limits):
        episode.stop_reason = episode.stop_reason or StopReason.TOKEN_BUDGET


def stop_reason(answer: StepAnswer, num_turns: int, max_turns: int) -> StopReason | None:
    """Why an episode ends after its `num_turns`-th answer, `None` if it goes on."""
    if answer.terminated:
        return StopReason.TERMINATED
    if answer.truncated:
        return StopReason.ENV_TRUNCATED
    return StopReason.MAX_TURNS if num_turns >= max_turns else None


def _append_result(episode: _Episode, turn: Turn, chat: PromptFormat, limits: RolloutLimits) -> Turn:
    """Appends o_{t+1} if it fits the budget. An episode that has no room for another action is truncated."""
    ids = episode.token_ids
    result = chat.result(episode.observation, closed=turn.closed)
    # A terminated episode has no next state; a truncated one gets the reply prompt, where V(s_T) is read.
    reply_prompt = [] if episode.stop_reason is StopReason.TERMINATED else chat.reply_prompt()
    if limits.history_window is None:
        needed = len(ids) + len(result) + len(reply_prompt)
        if episode.stop_reason is None and needed + limits.max_new_tokens > limits.max_episode_tokens:
            episode.stop_reason = StopReason.TOKEN_BUDGET
        if needed > limits.max_episode_tokens:
            return turn
    ids.extend(result)
    result_end = len(ids)
    ids.extend(reply_prompt)
    return replace(turn, result_end=result_end)


def _open_window(episode: _Episode, chat: PromptFormat, limits: RolloutLimits) -> bool:
    """Chooses what the policy sees now; False where nothing fits. Without a window it sees the whole episode."""
    if limits.history_window is None:
        return True
    window = widest_window(
        episode.token_ids,
        episode.turns,
        episode.observation,
        episode.instruction,
        chat,
        history=limits.history_window,
        max_tokens=limits.max_episode_tokens - limits.max_new_tokens,
    )
    if window is not None:
        episode.windows.append(window)
    return window is not None


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else f"{text[:limit]}...")
