"""Text environments for TRL's GRPOTrainer: see [`as_trl_environment`]."""

import weakref
from collections.abc import Mapping
from typing import Any

from .adapter_common import is_instance, joined, make_one
from .base import EnvironmentFactory, TextEnv

_OVER = "The episode is over. Answer without calling a tool."


def as_trl_environment(env_or_factory: TextEnv | EnvironmentFactory, name: str | None = None) -> type:
    """Makes a class for `environment_factory` of TRL's GRPOTrainer of any [`TextEnv`].

    The class has one tool, `step(action: str) -> str`. `reset(**row)` resets the environment with the row's seed and
    the row as options, and returns the instruction and the first observation, which GRPOTrainer appends to the
    prompt. After the end `step` raises a `ValueError`, which GRPOTrainer shows to the model. `get_reward()` is the
    sum of the environment's rewards, so 0 for an episode that was cut short.

    Args:
        env_or_factory ([`TextEnv`] or callable): what makes an environment. GRPOTrainer plays several at once, so a
            single instance is of use only where one episode is played at a time.
        name (`str`, *optional*): of the class; GRPOTrainer logs the reward under it. Default: the environment's.

    Returns:
        `type`: call it without arguments for an environment, or pass it as `environment_factory=`.

    Example:
    ```python
    from trl import GRPOTrainer
    from trl_mise.envs.kitchen import KitchenEnv, make_tasks

    rows = [{"prompt": [{"role": "user", "content": "Serve the order."}], **row} for row in make_tasks("train", 64)]
    trainer = GRPOTrainer(
        model="Qwen/Qwen3-4B",
        environment_factory=as_trl_environment(KitchenEnv),
        train_dataset=Dataset.from_list(rows),
    )
    ```
    """
    shared = is_instance(env_or_factory)
    if name is None:
        source = type(env_or_factory) if shared else env_or_factory
        name = getattr(source, "__name__", "")
        name = name if name.isidentifier() else "TextEnvironment"  # a partial or a lambda
    # A class of its own for every call: GRPOTrainer tells the rewards of different environments apart by their class.
    namespace = {"__doc__": f"{name} for TRL's GRPOTrainer.", "_source": staticmethod(lambda: env_or_factory)}
    return type(name, (_TRLEnvironment,), namespace)


class _TRLEnvironment:
    """One environment as GRPOTrainer sees it: every public method but `reset` and `get_reward` is a tool."""

    _taken = False

    def __init__(self) -> None:
        source = self._source()
        env = make_one(source)
        if env is source:
            if type(self)._taken:
                raise ValueError(
                    f"a second {type(self).__name__} was asked for, but as_trl_environment was given one instance; "
                    "give it a factory (a class or a zero-argument callable): episodes are played side by side"
                )
            type(self)._taken = True
        self._env = env
        self._reward, self._over = 0.0, True
        # GRPOTrainer never closes an environment.
        weakref.finalize(self, env.close)

    @staticmethod
    def _source() -> Any:
        raise NotImplementedError

    def reset(self, **row: Any) -> str:
        """Starts the episode of a dataset row."""
        seed = row.get("seed")
        observation, info = self._env.reset(seed=None if seed is None else int(seed), options=row)
        self._reward, self._over = 0.0, False
        instruction = str(info.get("instruction") or "")
        text = observation if instruction in observation else joined(instruction, observation)
        # GRPOTrainer appends this to the last message with nothing between.
        return f"\n\n{text}" if _last_content(row.get("prompt")) else text

    def step(self, action: str) -> str:
        """Takes one action in the environment and returns what comes of it.

        Args:
            action: The action, as text.

        Returns:
            The next observation.
        """
        if self._over:
            raise ValueError(_OVER)
        if not isinstance(action, str):
            raise TypeError(f"action must be a string, got {type(action).__name__}")
        observation, reward, terminated, truncated, _ = self._env.step(action)
        self._reward += float(reward)
        self._over = bool(terminated or truncated)
        return joined(observation, _OVER) if self._over else observation

    def get_reward(self) -> float:
        """The sum of the episode's rewards so far."""
        return self._reward


def _last_content(prompt: Any) -> bool:
    """Whether the last message of a row's prompt says anything."""
    if not prompt or isinstance(prompt, str):
        return bool(prompt)
    last = prompt[-1]
    return bool(last.get("content")) if isinstance(last, Mapping) else True
