"""The environment contract: Gymnasium's shape over plain strings. No torch, no TRL."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class TextEnv(Protocol):
    """A text environment with a sparse reward.

    `info` may carry `instruction` (`str`, from `reset`), `admissible_actions` (a list or a zero-argument callable,
    because listing them is often expensive), `score`, `max_score`, `won` (`bool`), `action_valid` (`bool`).
    `reward` is the *sparse* reward; dense scores that an environment happens to have stay in `info`.
    """

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts the episode that `seed` and `options` (the dataset row) name; returns (observation, info)."""
        ...

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Returns (observation, reward, terminated, truncated, info)."""
        ...

    def close(self) -> None:
        """Frees what the environment holds; may be called twice."""
        ...


@runtime_checkable
class BackgroundEnv(TextEnv, Protocol):
    """An environment that works elsewhere: a call is begun, and its answer fetched later.

    `begin_reset` and `begin_step` return at once and raise nothing that belongs to the environment; `result` waits for
    the answer of `reset` or `step` to the call begun last, or raises.
    """

    def begin_reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None: ...

    def begin_step(self, action: str) -> None: ...

    def result(self) -> Any: ...


EnvironmentFactory = Callable[[], TextEnv]


class EnvironmentFailure(RuntimeError):
    """Raised where an environment breaks its contract; the message names the environment and the episode."""


def admissible_actions(info: Mapping[str, Any]) -> list[str]:
    """The admissible actions in `info`, called if they are lazy; empty where the environment gives none."""
    actions = info.get("admissible_actions") or []
    return list(actions() if callable(actions) else actions)
