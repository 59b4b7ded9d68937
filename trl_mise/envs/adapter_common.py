"""What the adapters share: one environment from what was passed, text that can be tokenised, the end of an episode."""

from collections.abc import Mapping
from typing import Any

from .base import EnvironmentFailure

_QUOTE_CHARS = 60


def make_one(env_or_factory: Any) -> Any:
    """The environment that was passed, or a new one from the factory. A class is a factory, although it has `reset`.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(env_or_factory, type) and hasattr(env_or_factory, "reset"):
        return env_or_factory
    if callable(env_or_factory):
        return env_or_factory()
    raise TypeError(
        f"{quote(env_or_factory)} ({type(env_or_factory).__name__}) is neither an environment (it has no reset) nor "
        "callable; pass an environment or a zero-argument factory"
    )


def clean_text(value: object) -> str:
    """`str(value)` that every tokenizer can encode: half a surrogate pair, which JSON can spell, becomes `?`."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def quote(value: object, limit: int = _QUOTE_CHARS) -> str:
    """The value in one short line, control characters written out."""
    text = clean_text(repr(value[: limit + 1] if isinstance(value, str) else value))
    return text if len(text) <= limit else f"{text[:limit]}..."


def joined(*parts: str) -> str:
    """The parts that say something, a blank line between them."""
    return "\n\n".join(part for part in parts if part)


def win_flag(info: Mapping[str, Any]) -> bool | None:
    """The environment's own verdict on the episode: `won`, or `is_success` as Gymnasium's robotics and SB3 call it."""
    for key in ("won", "is_success"):
        if info.get(key) is not None:
            return bool(info[key])
    return None


def not_running(name: str) -> EnvironmentFailure:
    """What a step outside an episode raises."""
    return EnvironmentFailure(f"{name}: step() before reset(), or after the end of the episode; call reset()")
