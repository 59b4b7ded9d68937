"""What an environment answered, checked before anything is made of it. Used on both sides of a process boundary."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .base import EnvironmentFailure

MAX_TEXT_CHARS = 1_000_000
"""An observation of megabytes is an accident, and would be one in every later stage."""

_NUMPY_FLAGS = (("numpy", "bool"), ("numpy", "bool_"))  # NumPy 2, NumPy 1


class InvalidAnswer(EnvironmentFailure):
    """An environment returned something that is no answer; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class ResetAnswer:
    """What `reset` returned."""

    observation: str
    info: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StepAnswer:
    """What `step` returned; the reward is a finite float, the flags are bools."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


def checked_reset(answer: Any) -> ResetAnswer:
    """`(observation, info)` as a [`ResetAnswer`].

    Raises:
        InvalidAnswer: it is not what `TextEnv.reset` returns.
    """
    observation, info = _parts("reset", answer, ("observation", "info"))
    return ResetAnswer(_checked_text("observation", observation), _checked_info(info))


def checked_step(answer: Any) -> StepAnswer:
    """`(observation, reward, terminated, truncated, info)` as a [`StepAnswer`].

    Raises:
        InvalidAnswer: it is not what `TextEnv.step` returns.
    """
    names = ("observation", "reward", "terminated", "truncated", "info")
    observation, reward, terminated, truncated, info = _parts("step", answer, names)
    if not (isinstance(reward, numbers.Real) or _is_flag(reward)) or not math.isfinite(reward):
        raise InvalidAnswer(f"the reward is {_shown(reward)}; it must be a finite float")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not _is_flag(flag):
            raise InvalidAnswer(f"{name} is {_shown(flag)}; it must be a bool")
    text, facts = _checked_text("observation", observation), _checked_info(info)
    return StepAnswer(text, float(reward), bool(terminated), bool(truncated), facts)


def _is_flag(value: Any) -> bool:
    """A bool of Python or NumPy, told without NumPy: it is a third of what a worker takes to start."""
    return isinstance(value, bool) or (type(value).__module__, type(value).__name__) in _NUMPY_FLAGS


def _parts(call: str, answer: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(answer, tuple) or len(answer) != len(names):
        raise InvalidAnswer(f"{call} must return ({', '.join(names)}), got {_shown(answer)}")
    return answer


def _checked_text(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise InvalidAnswer(f"the {name} is {_shown(text)}; it must be a str")
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidAnswer(f"the {name} has {len(text):,} characters, more than {MAX_TEXT_CHARS:,}; shorten it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidAnswer(
            f"the {name} is no valid text ({error.reason} at character {error.start}); decode it as UTF-8, e.g. with "
            "errors='replace'"
        ) from None
    return str(text)


def _checked_info(info: Any) -> Mapping[str, Any]:
    if not isinstance(info, Mapping):
        raise InvalidAnswer(f"info is {_shown(info)}; it must be a dict (it may be empty)")
    if info.get("instruction") is not None:
        _checked_text('info["instruction"]', info["instruction"])
    return info


def _shown(value: Any, limit: int = 80) -> str:
    """The value and its type, in one short line."""
    text = repr(value) if not isinstance(value, (str, bytes)) else repr(value[:limit])
    return f"{text if len(text) <= limit else f'{text[:limit]}...'} ({type(value).__name__})"
