"""`trl-mise play`: a person plays an environment."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..envs.base import TextEnv, admissible_actions
from ..envs.registry import environment_spec
from ..types import is_success
from .common import add_environment_options, json_object, new_parser
from .transcript import printable

HELP = "type an action; ? lists those that the environment names, q (or Ctrl-D) ends"


def main(argv: Sequence[str]) -> int:
    parser = new_parser("play", f"Play an environment yourself: {HELP}.")
    add_environment_options(parser, required=True)
    parser.add_argument("--split", default="train", help="of the tasks; default: train")
    parser.add_argument("--seed", type=int, default=0, help="which task of the split; default: 0")
    parser.add_argument("--task", type=json_object, help="a dataset row, JSON, in place of a drawn one")
    parser.add_argument("--task_kwargs", type=json_object, help="arguments of its make_tasks, JSON")
    options = parser.parse_args(argv)
    spec = environment_spec(options.env)
    env = spec.factory(**(options.env_kwargs or {}))()
    try:
        task = options.task or spec.make_tasks(options.split, 1, options.seed, **(options.task_kwargs or {}))[0]
        seed = task.get("seed")
        observation, info = env.reset(seed=None if seed is None else int(seed), options=task)
        print(HELP)
        if info.get("instruction"):
            print(f"\n{printable(info['instruction'])}")
        print(f"\n{printable(observation)}")
        _loop(env, info)
    except EOFError:
        print("\nbye")
    finally:
        env.close()
    return 0


def _loop(env: TextEnv, info: Mapping[str, Any]) -> None:
    """Until the episode is over, or the person has had enough."""
    total, won, steps = 0.0, None, 0
    while True:
        line = input("\n> ").strip()
        if line in ("q", "quit", "exit"):
            raise EOFError
        if line in ("", "?"):
            print("\n".join(map(printable, admissible_actions(info))) or "it names none" if line else HELP)
            continue
        observation, reward, terminated, truncated, info = env.step(line)
        total, won, steps = total + reward, info.get("won", won), steps + 1
        if not info.get("action_valid", True):
            print(f"(not understood; {HELP})")
        print(f"\n{printable(observation)}")
        if terminated or truncated:
            outcome = "won" if is_success(None if won is None else bool(won), total) else "lost"
            print(f"\n{outcome} after {steps} steps, return {total:.3f}{', truncated' if truncated else ''}")
            return
