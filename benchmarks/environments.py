"""Steps a second of every environment, with and without a list of the admissible actions after each step.

    python -m benchmarks.environments --json benchmarks/results/environments.json

The expert's episodes, the same in both arms. Only steps (and lists) are timed. "reset s" is the median reset to a task
played before: generated games are in the cache. An environment whose package is missing is a row that says how to
install it.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks._common import arguments, finish
from trl_mise.envs.base import TextEnv, admissible_actions
from trl_mise.envs.registry import ENVIRONMENTS, EnvironmentSpec

Episode = tuple[Mapping[str, Any], list[str]]
"""A task and the actions to play in it."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--env", nargs="+", default=list(ENVIRONMENTS), choices=list(ENVIRONMENTS))
    parser.add_argument("--episodes", type=int, default=10)
    parser.set_defaults(repeats=3)
    options = parser.parse_args(argv)
    if options.quick:
        options.episodes, options.repeats = 1, 1
    rows = [row(ENVIRONMENTS[name], options.episodes, options.repeats, quick=options.quick) for name in options.env]
    return finish("environments", options, rows, {"episodes": options.episodes, "repeats": options.repeats})


def row(spec: EnvironmentSpec, episodes: int, repeats: int, *, quick: bool = False) -> dict[str, Any]:
    """One line of the table."""
    try:
        env = spec.factory()()
    except ImportError as error:
        return {"environment": spec.name, "note": f"not measured: {error}"}
    rows = spec.make_tasks("train", episodes, **({} if quick else spec.evaluation_tasks))
    try:
        played = [record(env, task, spec) for task in rows]
        resets, plain, listed = zip(*(replay(env, played) for _ in range(repeats)), strict=True)
    finally:
        env.close()
    steps = sum(len(actions) for _, actions in played)
    return {
        "environment": spec.name,
        "steps": steps,
        "steps/s": steps / statistics.median(plain),
        "with admissible actions": steps / statistics.median(listed),
        "reset s": statistics.median(second for of_repeat in resets for second in of_repeat),
    }


def record(env: TextEnv, task: Mapping[str, Any], spec: EnvironmentSpec) -> Episode:
    """The expert's episode."""
    env.reset(seed=task["seed"], options=task)
    actions: list[str] = []
    expert, done = spec.expert_action(), False
    while not done and len(actions) < spec.max_steps:
        actions.append(expert(env))
        done = any(env.step(actions[-1])[2:4])
    return task, actions


def replay(env: TextEnv, episodes: Sequence[Episode]) -> tuple[list[float], float, float]:
    """(seconds of each reset, of all steps, of all steps with the list after each)."""
    resets, seconds = [], {False: 0.0, True: 0.0}
    for task, actions in episodes:
        for with_list in (False, True):  # taking turns: a slow minute of the machine hits both
            start = time.perf_counter()
            env.reset(seed=task["seed"], options=task)
            begun = time.perf_counter()
            for action in actions:
                info = env.step(action)[4]
                if with_list:
                    admissible_actions(info)
            seconds[with_list] += time.perf_counter() - begun
            resets.append(begun - start)
    return resets, seconds[False], seconds[True]


if __name__ == "__main__":
    main()
