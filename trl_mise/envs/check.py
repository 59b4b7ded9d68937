"""`check_env`: plays a few steps of an environment and names the first clause of the contract that it breaks."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import EnvironmentFactory, EnvironmentFailure, TextEnv, admissible_actions

GARBAGE_ACTIONS = ("", "\n", " ", "x" * 10_000, "\N{ROLLING ON THE FLOOR LAUGHING}", "click[\x00", "<|im_end|>")
_PLAIN_ACTIONS = ("look", "help", "search[red]", "click[next]")
_FLAGS = (bool, np.bool_)
_INFO_TYPES: Mapping[str, tuple[type, ...]] = {
    "instruction": (str,),
    "won": _FLAGS,
    "action_valid": _FLAGS,
    "score": (int, float, np.number),
    "max_score": (int, float, np.number),
}

Step = tuple[str, float, bool, bool]


def check_env(
    env_or_factory: TextEnv | EnvironmentFactory,
    *,
    task: Mapping[str, Any] | None = None,
    actions: Sequence[str] | None = None,
    steps: int = 20,
    seed: int = 0,
) -> None:
    """Checks that an environment keeps the [`TextEnv`] contract, and closes it.

    Looked at are the types and shapes of what `reset` and `step` return, rewards that are finite, episodes that are
    the same for the same seed and actions (on one instance, and on two where a factory is given), actions that mean
    nothing (they must not raise), and that `close` can be called twice.

    Args:
        env_or_factory ([`TextEnv`] or callable): the environment, or what makes one (`environment_factory=`).
        task (`Mapping`, *optional*): dataset row, passed as `options` to `reset`; its `"seed"` replaces `seed`.
        actions (`Sequence[str]`, *optional*): the actions to play, in this order. Default: admissible ones where the
            environment lists them, mixed with plain words.
        steps (`int`): steps to play at most.
        seed (`int`): seed of `reset` and of the choice of actions.

    Raises:
        EnvironmentFailure: names the environment, what is wrong and what to do.
    """
    env, make = _make_env(env_or_factory)
    row = dict(task or {})
    row_seed = row.get("seed")
    checked = _CheckedEnv(env, type(env).__name__, row, seed if row_seed is None else int(row_seed))
    checked.check_methods()
    first, played = _play(checked, actions, steps, random.Random(seed))
    _compare(checked.name, first, _replay(checked, played), played, "when it was reset with the same seed again")
    if make is not None:
        other = _CheckedEnv(_make_env(make)[0], checked.name, checked.row, checked.seed)
        _compare(checked.name, first, _replay(other, played), played, "on a second instance from the factory")
        other.close_twice()
    _check_garbage(checked)
    checked.close_twice()


def _make_env(env_or_factory: Any) -> tuple[Any, Callable[[], Any] | None]:
    """(the environment, the factory where one was given). A class is a factory, although it has a `reset`."""
    if not isinstance(env_or_factory, type) and hasattr(env_or_factory, "reset"):
        return env_or_factory, None
    if not callable(env_or_factory):
        raise EnvironmentFailure(
            f"check_env: {env_or_factory!r} is neither an environment (it has no reset) nor callable; "
            "pass an environment or a zero-argument factory"
        )
    try:
        return env_or_factory(), env_or_factory
    except Exception as error:
        raise EnvironmentFailure(
            f"environment_factory raised {type(error).__name__}: {error}; it must work without arguments "
            "(wrap them with functools.partial)"
        ) from error


@dataclass(frozen=True)
class _CheckedEnv:
    """An environment whose every answer is checked before it is passed on."""

    env: Any
    name: str
    row: dict[str, Any]
    seed: int

    def fail(self, message: str) -> EnvironmentFailure:
        return EnvironmentFailure(f"{self.name}: {message}")

    def check_methods(self) -> None:
        for method in ("reset", "step", "close"):
            if not callable(getattr(self.env, method, None)):
                raise self.fail(f"has no method {method}(); TextEnv needs reset, step and close")

    def reset(self) -> tuple[str, dict[str, Any]]:
        call = f"reset(seed={self.seed}, options={self.row!r})"
        try:
            answer = self.env.reset(seed=self.seed, options=dict(self.row))
        except Exception as error:
            raise self.fail(
                f"{call} raised {type(error).__name__}: {error}; reset must accept the keywords seed and options "
                "(a dataset row, or task= of check_env)"
            ) from error
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise self.fail(f"{call} must return (observation, info), got {_shape(answer)}")
        observation, info = answer
        self._check_text(call, observation)
        self._check_info(call, info)
        return observation, info

    def step(self, action: str) -> tuple[Step, dict[str, Any]]:
        call = f"step({_short(action)})"
        try:
            answer = self.env.step(action)
        except Exception as error:
            raise self.fail(
                f"{call} raised {type(error).__name__}: {error}; an action that means nothing must change nothing, "
                'say so in the observation or in info["action_valid"] = False'
            ) from error
        if not isinstance(answer, tuple) or len(answer) != 5:
            hint = "; split the old `done` into terminated and truncated" if _length(answer) == 4 else ""
            raise self.fail(
                f"{call} must return (observation, reward, terminated, truncated, info), got {_shape(answer)}{hint}"
            )
        observation, reward, terminated, truncated, info = answer
        self._check_text(call, observation)
        self._check_reward(call, reward)
        for flag, value in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(value, _FLAGS):
                raise self.fail(f"{call} returned {flag}={value!r} ({type(value).__name__}); return a bool")
        self._check_info(call, info)
        return (observation, float(reward), bool(terminated), bool(truncated)), info

    def close_twice(self) -> None:
        for time in ("first", "second"):
            try:
                self.env.close()
            except Exception as error:
                raise self.fail(
                    f"the {time} close() raised {type(error).__name__}: {error}; close() must be callable twice"
                ) from error

    def _check_text(self, call: str, observation: Any) -> None:
        if not isinstance(observation, str):
            raise self.fail(f"{call} returned an observation of type {type(observation).__name__}; return a str")

    def _check_reward(self, call: str, reward: Any) -> None:
        if isinstance(reward, _FLAGS) or not isinstance(reward, (int, float, np.integer, np.floating)):
            raise self.fail(f"{call} returned reward={reward!r} ({type(reward).__name__}); return a float")
        if not math.isfinite(reward):
            raise self.fail(f"{call} returned the reward {reward}; rewards must be finite")

    def _check_info(self, call: str, info: Any) -> None:
        if not isinstance(info, dict):
            raise self.fail(f"{call} returned info of type {type(info).__name__}; return a dict (it may be empty)")
        for key, types in _INFO_TYPES.items():
            value = info.get(key)
            if value is not None and not isinstance(value, types):
                expected = " or ".join(kind.__name__ for kind in types)
                raise self.fail(
                    f"{call} returned info[{key!r}]={_short(value)} ({type(value).__name__}); make it {expected}, "
                    "or leave the key out"
                )
        self.admissible(call, info)

    def admissible(self, call: str, info: Mapping[str, Any]) -> list[str]:
        """The admissible actions in `info`, checked."""
        try:
            found = admissible_actions(info)
        except Exception as error:
            raise self.fail(
                f'{call}: listing info["admissible_actions"] raised {type(error).__name__}: {error}; it must be a '
                "list of str, or a zero-argument callable that returns one"
            ) from error
        wrong = isinstance(info.get("admissible_actions"), str) or [a for a in found if not isinstance(a, str)]
        if wrong:
            raise self.fail(f'{call} returned info["admissible_actions"]={_short(found)}; make it a list of str')
        return found


def _play(
    checked: _CheckedEnv, actions: Sequence[str] | None, steps: int, rng: random.Random
) -> tuple[list[str | Step], list[str]]:
    """Plays one episode; returns what was seen (the first observation, then the steps) and the actions."""
    observation, info = checked.reset()
    seen: list[str | Step] = [observation]
    played: list[str] = []
    while len(played) < (steps if actions is None else min(steps, len(actions))):
        if actions is None:
            choices = [*checked.admissible("check_env", info), rng.choice(_PLAIN_ACTIONS)]
            action = rng.choice(choices)
        else:
            action = actions[len(played)]
        result, info = checked.step(action)
        played.append(action)
        seen.append(result)
        if result[2] or result[3]:
            break
    return seen, played


def _replay(checked: _CheckedEnv, played: Sequence[str]) -> list[str | Step]:
    observation, _ = checked.reset()
    seen: list[str | Step] = [observation]
    for action in played:
        result, _ = checked.step(action)
        seen.append(result)
        if result[2] or result[3]:
            break
    return seen


def _compare(
    name: str, first: Sequence[str | Step], second: Sequence[str | Step], played: Sequence[str], when: str
) -> None:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            where = "reset" if index == 0 else f"step {index}, {_short(played[index - 1])},"
            raise EnvironmentFailure(
                f"{name}: {where} returned {_short(other)} instead of {_short(one)} {when}; everything random must "
                "come from the seed, and reset must forget the last episode"
            )


def _check_garbage(checked: _CheckedEnv) -> None:
    checked.reset()
    for action in GARBAGE_ACTIONS:
        result, _ = checked.step(action)
        if result[2] or result[3]:
            checked.reset()


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def _length(answer: object) -> int | None:
    return len(answer) if isinstance(answer, tuple) else None


def _shape(answer: object) -> str:
    if isinstance(answer, tuple):
        return f"a tuple of {len(answer)}: ({', '.join(type(part).__name__ for part in answer)})"
    return f"{type(answer).__name__} {_short(answer)}"
