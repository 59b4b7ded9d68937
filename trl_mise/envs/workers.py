"""Environments in processes of their own: a crash, a hang or nonsense ends one episode, and never the run.

A worker is a fresh interpreter in a private working directory and a process group of its own, and every call has a
deadline. Whatever goes wrong, the group is killed, the call raises [`WorkerFailure`], and `reset` starts anew.
"""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from .answers import InvalidAnswer, ResetAnswer, StepAnswer, checked_reset, checked_step
from .base import EnvironmentFactory
from .worker_calls import Call, FailureKind, Worker, WorkerFailure
from .worker_factory import factory_name, pack_factory, unwrapped

__all__ = ["EnvironmentWorkers", "FailureKind", "WorkerEnv", "WorkerFailure", "needs_process"]

DEFAULT_RESET_TIMEOUT = 120.0


def needs_process(factory: EnvironmentFactory) -> bool:
    """Whether what `factory` makes asks for a process of its own: its class has `needs_process = True`."""
    return bool(getattr(unwrapped(factory), "needs_process", False))


class EnvironmentWorkers:
    """A factory of environments that live in processes of their own.

    Args:
        factory (`Callable[[], TextEnv]`): makes one environment *in the worker*: it must be picklable, i.e. a class, a
            function of a module, or a `functools.partial` of one.
        envs_per_worker (`int`): environments that share a process. They work one after the other, and fall together.
        timeout (`float`): seconds for one `step`. In a shared process they count from when its turn comes.
        reset_timeout (`float`, *optional*): seconds for `reset`, in which the process starts as well; 120, or
            `timeout` where that is longer.

    Its working directory is empty and goes with the process, so a factory's own paths must be absolute. Processes that
    an environment starts are killed with it, on Linux also those that have left its process group. All workers hash
    alike (`PYTHONHASHSEED` is 0 unless it is set), so that an episode made again from its seed is the same.

    Raises:
        ValueError: an argument out of range, or a factory that cannot be pickled.
        RuntimeError: a script that defines its factory starts workers without `if __name__ == "__main__"`.
    """

    def __init__(
        self,
        factory: EnvironmentFactory,
        *,
        envs_per_worker: int = 1,
        timeout: float = 60.0,
        reset_timeout: float | None = None,
    ) -> None:
        if os.name != "posix":
            raise ValueError("environments in processes of their own need a POSIX system; use env_isolation='none'")
        if envs_per_worker < 1:
            raise ValueError(f"envs_per_worker must be at least 1, got {envs_per_worker}")
        reset_timeout = max(DEFAULT_RESET_TIMEOUT, timeout) if reset_timeout is None else reset_timeout
        for name, seconds in (("timeout", timeout), ("reset_timeout", reset_timeout)):
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{name} must be a positive, finite number of seconds, got {seconds}")
        self.name = factory_name(factory)
        self._greeting = pack_factory(factory)
        self._envs_per_worker, self._timeout, self._reset_timeout = envs_per_worker, timeout, reset_timeout
        self._workers: list[Worker] = []
        self._made = 0

    def __call__(self) -> "WorkerEnv":
        """One environment; its process starts with the first `reset`."""
        if self._made % self._envs_per_worker == 0:
            self._workers.append(Worker(self.name, self._greeting))
        self._made += 1
        return WorkerEnv(self._workers[-1], self._made - 1, self._timeout, self._reset_timeout)

    def close(self) -> None:
        """Kills all processes. May be called twice, and environments may be made again afterwards."""
        for worker in self._workers:
            worker.kill("its environments were closed")
        self._workers.clear()
        self._made = 0


class WorkerEnv:
    """One environment in a worker process; a [`BackgroundEnv`]. Made by [`EnvironmentWorkers`].

    `begin_reset` and `begin_step` never wait; that a call failed is told by its `result`.
    Of `info` arrives what JSON can hold, tuples as lists and anything else as its `repr`. `admissible_actions` that
    are a callable stay lazy, and are those of the last answer: called later than that, they raise.
    """

    def __init__(self, worker: Worker, number: int, timeout: float, reset_timeout: float) -> None:
        self._worker, self._number = worker, number
        self._timeout, self._reset_timeout = timeout, reset_timeout
        self._life: int | None = None  # the process of the worker in which this environment's episode runs
        self._call: Call | None = None
        self._num_answers = 0

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.begin_reset(seed=seed, options=options)
        observation, info = self.result()
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.begin_step(action)
        observation, reward, terminated, truncated, info = self.result()
        return observation, reward, terminated, truncated, info

    def begin_reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Starts `reset`; also the process, where it does not run. A call that was not answered yet is given up."""
        if self._call is not None:
            self._worker.abandon(self._call)
        self._life = self._worker.start(self._number)
        request = {"call": "reset", "seed": seed, "options": None if options is None else dict(options)}
        self._call = self._begin(request, self._reset_timeout)

    def begin_step(self, action: str) -> None:
        """Starts `step`."""
        if self._call is not None:
            raise RuntimeError("begin_step was called before the result() of the call before it")
        self._call = self._begin({"call": "step", "action": action}, self._timeout)

    def result(self) -> tuple[Any, ...]:
        """Waits for the answer to the call that was begun last: what `reset` or `step` returns.

        Raises:
            WorkerFailure: there is none.
        """
        call = self._call
        if call is None:
            raise RuntimeError("result() was called, but no begin_reset or begin_step before it")
        try:
            answer = self._worker.finish(call)
        except WorkerFailure:  # and nothing else: a call whose waiting was interrupted is still under way
            self._call = None
            raise
        self._call = None
        if call.request["call"] == "reset":
            reset = self._checked(call, checked_reset, ResetAnswer, answer)
            return reset.observation, self._with_listing(reset.info)
        step = self._checked(call, checked_step, StepAnswer, answer)
        return step.observation, step.reward, step.terminated, step.truncated, self._with_listing(step.info)

    def close(self) -> None:
        """Closes the environment, and ends its process with the last one in it. May be called twice."""
        self._worker.close(self._number, self._life)
        self._life = self._call = None

    def _begin(self, request: dict[str, Any], timeout: float) -> Call:
        if self._life is None:
            raise RuntimeError("WorkerEnv.step was called before reset; call reset() first")
        return self._worker.begin({**request, "env": self._number}, self._life, timeout)

    def _checked(self, call: Call, check: Callable[[Any], Any], kind: type, reply: Any) -> Any:
        """The answer once more: who wrote it is not known."""
        found = reply.get("answer")
        try:
            answer = check(
                tuple(found.get(field.name) for field in fields(kind)) if isinstance(found, dict) else found
            )
        except InvalidAnswer as error:
            raise self._worker.fail(call, "garbage", str(error)) from None
        self._num_answers += 1
        return answer

    def _with_listing(self, info: Mapping[str, Any]) -> dict[str, Any]:
        info = dict(info)
        if isinstance(info.get("admissible_actions"), dict):
            info["admissible_actions"] = functools.partial(self._list_actions, self._num_answers)
        return info

    def _list_actions(self, answer: int) -> list[str]:
        if self._num_answers != answer or self._call is not None:
            raise RuntimeError(
                'info["admissible_actions"] was called after the next step or reset; list them before that'
            )
        call = self._begin({"call": "admissible"}, self._timeout)
        actions = self._worker.finish(call).get("actions")
        if not isinstance(actions, list) or not all(isinstance(action, str) for action in actions):
            raise self._worker.fail(call, "garbage", "the admissible actions are no list of str")
        return actions
