"""What the adapters share: one environment from what was passed, text that can be tokenised, the end of an episode."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

from .answers import MAX_TEXT_CHARS
from .base import EnvironmentFailure

_QUOTE_CHARS = 60
_MAX_RESULT_CHARS = MAX_TEXT_CHARS - 1_000
_LAST_RESET: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""The adapter that has reset an environment last, by the `id` of the environment, which the adapter keeps alive."""


def is_instance(env_or_factory: Any) -> bool:
    """Whether it is an environment, not a factory of them. A class is a factory, although it has a `reset`.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(env_or_factory, type) and hasattr(env_or_factory, "reset"):
        return True
    if callable(env_or_factory):
        return False
    raise TypeError(
        f"{quote(env_or_factory)} ({type(env_or_factory).__name__}) is neither an environment (it has no reset) nor "
        "callable; pass an environment or a zero-argument factory"
    )


def make_one(env_or_factory: Any) -> Any:
    """The environment that was passed, or a new one from the factory.

    Raises:
        TypeError: it is neither.
    """
    return env_or_factory if is_instance(env_or_factory) else env_or_factory()


def begin_episode(adapter: Any, env: Any) -> None:
    """Notes that the episode in `env` is `adapter`'s from now on."""
    _LAST_RESET[id(env)] = adapter


def check_episode(adapter: Any, env: Any, running: bool) -> None:
    """Checks that `adapter` has an episode in `env`, and that nobody has begun another one there since.

    Raises:
        EnvironmentFailure: there is none, or the environment is shared.
    """
    name = type(env).__name__
    if not running:
        raise EnvironmentFailure(f"{name}: step() before reset(), or after the end of the episode; call reset()")
    if _LAST_RESET.get(id(env), adapter) is not adapter:
        raise EnvironmentFailure(
            f"{name}: another episode was begun in the same instance before this one ended; give the adapter a "
            "factory that makes a new environment at each call, not one instance"
        )


def shortened(text: str) -> str:
    """What a policy's own call brought, cut to what an observation may have. The policy's fault, not a failure."""
    return text if len(text) <= _MAX_RESULT_CHARS else f"{text[:_MAX_RESULT_CHARS]}..."


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
