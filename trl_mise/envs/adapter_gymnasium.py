"""Gymnasium environments as text environments: see [`from_gymnasium`]."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .adapter_common import begin_episode, check_episode, clean_text, joined, make_one, quote, win_flag

_LISTED_IN_NOTE = 20
"""Actions that the note after a wrong one lists at most."""


def from_gymnasium(
    env_or_factory: Any,
    *,
    action_names: Sequence[str] | None = None,
    render_observation: Callable[[Any], str] | None = None,
    instruction: str | None = None,
) -> "GymnasiumTextEnv":
    """Makes a [`TextEnv`] of a Gymnasium environment with text actions or with discrete actions that have names.

    Rewards, `terminated`, `truncated`, seeds and options (the dataset row) pass through unchanged. Where `info` has
    an `action_mask`, masked actions are refused. An action that the environment does not know is not taken: the
    observation comes again with a note, and `info["action_valid"]` is False. `info["is_success"]` becomes `won`.

    Args:
        env_or_factory (`gymnasium.Env` or callable): the environment, or a zero-argument callable that makes one. The
            trainer needs a factory, because it plays many episodes side by side: wrap the callable, as below, never
            one instance.
        action_names (`Sequence[str]`, *optional*): for `Discrete` actions, one name each, in order. Default: the
            environment's `action_names` or `get_action_meanings()`.
        render_observation (`Callable[[Any], str]`, *optional*): makes an observation text. Default: observations that
            are text, or a dict with exactly one text in it.
        instruction (`str`, *optional*): the task, in front of the first observation. Default: `info["instruction"]`
            of `reset`, otherwise the list of the action names.

    Raises:
        ImportError: Gymnasium is not installed.
        ValueError: the actions are neither `Text` nor `Discrete` with names; the message names the argument.

    Example:
    ```python
    import gymnasium
    from functools import partial

    make_env = partial(gymnasium.make, "FrozenLake-v1", is_slippery=False)
    trainer = MISETrainer(
        ...,
        # Can be pickled, so it works in worker processes too.
        environment_factory=partial(
            from_gymnasium,
            make_env,
            action_names=["left", "down", "right", "up"],
            render_observation="You are on field {}.".format,
        ),
    )
    ```
    """
    env = make_one(env_or_factory)
    return GymnasiumTextEnv(env, _actions(env, action_names), render_observation, instruction)


class GymnasiumTextEnv:
    """A Gymnasium environment behind the [`TextEnv`] contract; made by [`from_gymnasium`].

    Args:
        env (`gymnasium.Env`): the environment.
        actions: what its actions are called.
        render_observation (`Callable[[Any], str]`, *optional*): makes an observation text.
        instruction (`str`, *optional*): the task.
    """

    def __init__(
        self,
        env: Any,
        actions: "_TextActions | _NamedActions",
        render_observation: Callable[[Any], str] | None,
        instruction: str | None,
    ) -> None:
        self.env = env
        self._actions = actions
        self._render = render_observation
        self._instruction = instruction
        self._running = self._closed = False

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode; `seed` and `options` go to the environment.

        Raises:
            TypeError: the observation is no text and there is no `render_observation`.
        """
        observation, info = self.env.reset(seed=seed, options=None if options is None else dict(options))
        self._running = True
        begin_episode(self, self.env)
        self._observation = self._text(observation)
        self._mask = info.get("action_mask")
        given = self._instruction
        if given is None:
            given = info.get("instruction") or self._actions.describe()
        return self._observation, {**self._info(info), "instruction": clean_text(given)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes the action, if the environment knows it.

        Raises:
            EnvironmentFailure: there is no episode, it has ended, or another one was begun in the same instance.
        """
        check_episode(self, self.env, self._running)
        native = self._actions.find(action, self._mask)
        if native is None:
            note = f"{quote(action)} is no action here. {self._actions.describe(self._mask)}".strip()
            return joined(self._observation, note), 0.0, False, False, {**self._info({}), "action_valid": False}
        observation, reward, terminated, truncated, info = self.env.step(native)
        self._running = not (terminated or truncated)
        self._observation = self._text(observation)
        self._mask = info.get("action_mask")
        result_info = {**self._info(info), "action_valid": True}
        return self._observation, float(reward), bool(terminated), bool(truncated), result_info

    def close(self) -> None:
        """Closes the environment; may be called twice."""
        self._running = False
        if not self._closed:
            self._closed = True
            self.env.close()

    def _info(self, info: Mapping[str, Any]) -> dict[str, Any]:
        names = self._actions.admissible(self._mask) if self._running else []
        listed = {} if names is None else {"admissible_actions": names}
        won = win_flag(info)
        return {**info, **listed, **({} if won is None else {"won": won})}

    def _text(self, observation: Any) -> str:
        if self._render is not None:
            return clean_text(self._render(observation))
        if isinstance(observation, Mapping):
            texts = [value for value in observation.values() if isinstance(value, str)]
            if len(texts) == 1:
                return clean_text(texts[0])
        elif isinstance(observation, str):
            return clean_text(observation)
        raise TypeError(
            f"{type(self.env).__name__} returned the observation {quote(observation)} "
            f"({type(observation).__name__}), which is neither text nor a dict with exactly one text in it; pass "
            "render_observation=, a callable that makes it a str"
        )


class _TextActions:
    """A `Text` action space: what it contains is an action."""

    def __init__(self, space: Any) -> None:
        self._space = space

    def find(self, action: str, mask: Any) -> str | None:
        return action if self._space.contains(action) else None

    def admissible(self, mask: Any) -> None:
        return None

    def describe(self, mask: Any = None) -> str:
        return ""


class _NamedActions:
    """A `Discrete` action space whose actions have names. Case and blanks do not matter."""

    def __init__(self, names: Sequence[str], start: int) -> None:
        self._names, self._start = list(names), start
        self._indices = {_plain(name): index for index, name in enumerate(self._names)}
        if len(self._indices) != len(self._names):
            raise ValueError(f"action_names {self._names} are not distinct; case and blanks do not distinguish them")

    def find(self, action: str, mask: Any) -> int | None:
        index = self._indices.get(_plain(action))
        return None if index is None or (mask is not None and not mask[index]) else self._start + index

    def admissible(self, mask: Any) -> list[str]:
        return [name for index, name in enumerate(self._names) if mask is None or mask[index]]

    def describe(self, mask: Any = None) -> str:
        names = self.admissible(mask)
        more = ", ..." if len(names) > _LISTED_IN_NOTE else ""
        return f"Actions: {', '.join(names[:_LISTED_IN_NOTE])}{more}"


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()


def _actions(env: Any, names: Sequence[str] | None) -> _TextActions | _NamedActions:
    try:
        from gymnasium import spaces
    except ImportError as error:
        raise ImportError("from_gymnasium needs Gymnasium: pip install gymnasium") from error
    space = getattr(env, "action_space", None)
    kind = type(env).__name__
    if isinstance(space, spaces.Text):
        if names is not None:
            raise ValueError(f"action_names were given, but the actions of {kind} are text: {space}; leave them out")
        return _TextActions(space)
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"the actions of {kind} are {space}; from_gymnasium knows Text, and Discrete with names: wrap the "
            "environment with a gymnasium.ActionWrapper that has one of these"
        )
    found = list(_names_of(env) or []) if names is None else list(names)
    if not found:
        raise ValueError(
            f"the {space.n} discrete actions of {kind} have no names (no attribute action_names, no "
            "get_action_meanings()); pass action_names=, one str for each action"
        )
    if len(found) != space.n or not all(isinstance(name, str) for name in found):
        raise ValueError(f"action_names must be {space.n} str, one for each action of {kind}, got {found}")
    return _NamedActions(found, int(space.start))


def _names_of(env: Any) -> Any:
    """The names that an environment, or what it wraps, has for its actions."""
    for holder in (env, getattr(env, "unwrapped", env)):
        names = getattr(holder, "action_names", None)
        meanings = getattr(holder, "get_action_meanings", None)
        if names is None and callable(meanings):
            names = meanings()
        if names is not None:
            return names
    return None
