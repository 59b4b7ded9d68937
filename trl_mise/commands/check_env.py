"""`trl-mise check-env`: does an environment keep the contract? Says which clause it breaks, or shows an episode."""

from collections.abc import Sequence
from typing import Any

from ..agents import RandomAgent
from ..envs.base import EnvironmentFailure
from ..envs.check import check_env
from ..envs.registry import environment_spec
from ..evaluation import evaluate
from .common import add_environment_options, json_object, new_parser
from .transcript import Transcripts, print_episode

EXAMPLES = """\
examples:
  trl-mise check-env --env my_module:MyEnv
  trl-mise check-env --env my_module:make_env --env_kwargs '{"size": 4}' --task '{"level": 2}'

Exits with 1 if the contract is broken."""


def main(argv: Sequence[str]) -> int:
    parser = new_parser("check-env", "Check an environment against the contract of trl_mise.TextEnv.", EXAMPLES)
    add_environment_options(parser, required=True)
    parser.add_argument("--task", type=json_object, help="dataset row, JSON; default: the first of its make_tasks")
    parser.add_argument("--steps", type=int, default=20, help="steps to play at most; default: 20")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    options = parser.parse_args(argv)
    spec = environment_spec(options.env)
    factory = spec.factory(**(options.env_kwargs or {}))
    task: dict[str, Any] = options.task or spec.make_tasks("train", 1, options.seed)[0]
    try:
        check_env(factory, task=task, steps=options.steps, seed=options.seed)
    except EnvironmentFailure as error:
        print(f"{options.env}: the contract is broken.\n{error}")
        return 1
    print(f"{options.env} keeps the contract. A random agent's episode:\n")
    transcripts = Transcripts(factory)
    evaluate(RandomAgent(options.seed), transcripts, [task], max_steps=min(options.steps, spec.max_steps))
    print_episode(transcripts.episodes[0], width=None)
    return 0
