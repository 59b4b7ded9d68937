"""`trl-mise eval`: plays an environment with a random agent, an expert or a model, and says how well it went."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..envs.registry import environment_spec
from ..evaluation import evaluate
from .common import (
    add_agent_options,
    add_environment_options,
    add_task_options,
    make_agent,
    new_parser,
    tasks_to_play,
    with_known_options,
)

EXAMPLES = """\
examples:
  trl-mise eval --env textworld --agent expert   is everything installed? must win all
  trl-mise eval --env textworld --agent random   what is won by chance
  trl-mise eval --model_name_or_path runs/shop   the policy of a run, on the run's environment
  trl-mise eval --env my_module:MyEnv --agent model --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct

Exits with 1 if the environment failed in every episode, and with 2 if it could not be started."""


def main(argv: Sequence[str]) -> int:
    options = with_known_options(_parser().parse_args(argv))
    spec = environment_spec(options.env)
    factory = spec.factory(**(options.env_kwargs or {}))
    tasks = tasks_to_play(spec, options)
    agent = make_agent(spec.expert_action, options)
    from tqdm.auto import tqdm

    with tqdm(total=len(tasks), unit="episode", leave=False, dynamic_ncols=True, disable=None) as bar:
        result = evaluate(
            agent,
            factory,
            tasks,
            max_steps=options.max_steps or spec.max_steps,
            on_progress=lambda done, total: bar.update(done - bar.n),
        )
    print(f"{options.env}, {options.split} split, {options.agent} agent, seed {options.seed}\n{result.table()}")
    for message in result.errors[:3]:
        print(f"failed: {message}")
    if options.output is not None:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"options": given, **result.as_dict()}, indent=1, default=str)
        options.output.write_text(text + "\n", encoding="utf-8")
    return int(result.num_errors == len(result.episodes))


def _parser() -> argparse.ArgumentParser:
    # Not TrlParser: importing TRL takes longer than playing.
    parser = new_parser("eval", "Play episodes with an agent and say how well it went.", EXAMPLES)
    add_environment_options(parser)
    add_task_options(parser, episodes=20)
    parser.add_argument("--output", type=Path, help="JSON file for the numbers and all episodes")
    add_agent_options(parser)
    return parser
