"""`EnvironmentPool`: the environments of a rollout, in this process or in processes of their own."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from .base import EnvironmentFactory, EnvironmentFailure, TextEnv
from .workers import EnvironmentWorkers, needs_process

Isolation = Literal["auto", "process", "none"]


class RestartingEnv:
    """An environment in this process. What state it is in after it raised nobody knows, so another takes its place.

    Args:
        factory: makes the environment; called at the first `reset`, and at the next one after a failure.
    """

    def __init__(self, factory: EnvironmentFactory) -> None:
        self._factory = factory
        self._env: TextEnv | None = None

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        if self._env is None:
            self._env = self._factory()
        return self._guard(lambda env: env.reset(seed=seed, options=options))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return self._guard(lambda env: env.step(action))

    def close(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _guard(self, call: Callable[[TextEnv], Any]) -> Any:
        if self._env is None:
            raise RuntimeError("step was called before reset")
        try:
            return call(self._env)
        except SystemExit as error:
            # Of an environment it is a failure like others; passed on, it would end the run, with exit code 0.
            with contextlib.suppress(Exception):
                self.close()
            raise EnvironmentFailure(f"the environment called exit() (SystemExit: {error})") from error
        except Exception:
            with contextlib.suppress(Exception):
                self.close()
            raise


class EnvironmentPool:
    """Makes environments as they are needed and keeps them until it is closed; it can be used again then.

    Args:
        factory: makes one environment.
        isolation (`"auto"`, `"process"` or `"none"`): `"auto"` takes processes where the environment's class says
            `needs_process = True`.
        envs_per_worker (`int`), timeout (`float`), reset_timeout (`float`, *optional*): see [`EnvironmentWorkers`].
    """

    def __init__(
        self,
        factory: EnvironmentFactory,
        *,
        isolation: Isolation = "auto",
        envs_per_worker: int = 1,
        timeout: float = 60.0,
        reset_timeout: float | None = None,
    ) -> None:
        self.isolated = isolation == "process" or (isolation == "auto" and needs_process(factory))
        self._workers: EnvironmentWorkers | None = None
        if self.isolated:
            self._workers = EnvironmentWorkers(
                factory, envs_per_worker=envs_per_worker, timeout=timeout, reset_timeout=reset_timeout
            )
        self._factory = factory
        self._envs: list[TextEnv] = []

    @property
    def factory(self) -> EnvironmentFactory:
        """Makes one environment where those of the pool live, for a check of its contract."""
        return self._workers or self._factory

    def take(self, count: int) -> list[TextEnv]:
        """`count` environments; the same ones every time."""
        while len(self._envs) < count:
            self._envs.append(RestartingEnv(self._factory) if self._workers is None else self._workers())
        return self._envs[:count]

    def close(self) -> None:
        """Closes all environments, also if one of them cannot be closed."""
        while self._envs:
            with contextlib.suppress(Exception):
                self._envs.pop().close()
        if self._workers is not None:
            self._workers.close()
