"""Agents that need no model: random, and with an expert's plan. They see the environment itself. No torch."""

import contextlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .envs.answers import checked_reset, checked_step
from .envs.base import EnvironmentFactory, EnvironmentFailure, TextEnv, admissible_actions
from .evaluation import EpisodeResult, Progress
from .rollout import stop_reason
from .types import StopReason, is_success

PLAIN_ACTIONS = ("look", "inventory", "wait")
"""What a random agent says where the environment lists no actions."""


class StepAgent(ABC):
    """Plays in this process, one episode after the other. Override [`act`].

    Args:
        seed (`int`): of what is random in it; episode `n` is the same whatever the others were.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def act(self, env: Any, info: Mapping[str, Any], rng: random.Random) -> str:
        """The next action.

        Args:
            env ([`TextEnv`]): as it is now.
            info (`Mapping`): of its last answer.
            rng (`random.Random`): the episode's own.
        """

    def play(
        self,
        factory: EnvironmentFactory,
        tasks: Sequence[Mapping[str, Any]],
        max_steps: int,
        on_progress: Progress | None = None,
    ) -> list[EpisodeResult]:
        """One episode per task.

        Raises:
            EnvironmentFailure: `factory` cannot make an environment.
        """
        env, results = _made(factory), []
        try:
            for index, task in enumerate(tasks):
                results.append(self.play_episode(env, task, max_steps, random.Random(f"{self.seed}-{index}")))
                if results[-1].error is not None and index + 1 < len(tasks):
                    # What state it is in after it failed nobody knows.
                    _close(env)
                    env = _made(factory)
                if on_progress is not None:
                    on_progress(len(results), len(tasks))
        finally:
            _close(env)
        return results

    def play_episode(self, env: TextEnv, task: Mapping[str, Any], max_steps: int, rng: random.Random) -> EpisodeResult:
        """One episode; whatever the environment or the plan raises ends it, and is said in the result."""
        total, steps, invalid, won, where = 0.0, 0, 0, None, "reset"
        try:
            seed = task.get("seed")
            info = checked_reset(env.reset(seed=None if seed is None else int(seed), options=task)).info
            stopped: StopReason | None = None
            while stopped is None:
                where = f"choosing action {steps + 1}"
                action = self.act(env, info, rng)
                where = f"step {steps + 1}, action {action!r:.60}"
                answer = checked_step(env.step(action))
                steps, total, info = steps + 1, total + answer.reward, answer.info
                invalid += not info.get("action_valid", True)
                won = info.get("won", won)
                stopped = stop_reason(answer, steps, max_steps)
        except Exception as error:  # the next episode has its own chance
            message = f"task {dict(task)!r}, {where}: {type(error).__name__}: {error}"
            return EpisodeResult(task, steps=steps, stop_reason=StopReason.ENV_ERROR, error=message)
        success = is_success(None if won is None else bool(won), total)
        return EpisodeResult(task, total, success, steps, invalid, stopped)


class RandomAgent(StepAgent):
    """Takes any of the admissible actions, each as likely as the others.

    Args:
        seed (`int`): of the choices.
        actions (`Sequence[str]`): to choose from where the environment lists none.
    """

    def __init__(self, seed: int = 0, actions: Sequence[str] = PLAIN_ACTIONS) -> None:
        super().__init__(seed)
        self.actions = tuple(actions)

    def act(self, env: Any, info: Mapping[str, Any], rng: random.Random) -> str:
        return rng.choice(admissible_actions(info) or self.actions)


class ExpertAgent(StepAgent):
    """Follows a plan that wins.

    Args:
        expert_action (`Callable`): from the environment to the next action, e.g. `expert_action` of its module.
    """

    def __init__(self, expert_action: Callable[[Any], str]) -> None:
        super().__init__()
        self.expert_action = expert_action

    def act(self, env: Any, info: Mapping[str, Any], rng: random.Random) -> str:
        return self.expert_action(env)


def _made(factory: EnvironmentFactory) -> TextEnv:
    try:
        return factory()
    except Exception as error:
        raise EnvironmentFailure(f"the environment cannot be made: {type(error).__name__}: {error}") from error


def _close(env: TextEnv) -> None:
    with contextlib.suppress(Exception):
        env.close()
