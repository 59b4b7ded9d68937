"""Plays an environment with a random agent, an expert or a model, and says how well it went.

    python examples/evaluate.py --env textworld --agent expert --episodes 20   # is everything installed? must win all
    python examples/evaluate.py --env textworld --agent random --episodes 20   # what is won by chance
    python examples/evaluate.py --env webshop --agent model --config examples/configs/webshop.yaml --episodes 100
    python examples/evaluate.py --env my_package.my_module:MyEnv --agent random  # an environment of your own

A model is a folder that a trainer saved to, a LoRA adapter, or a name on the hub. `--config` takes what the policy is
told and how much it may read and say from the file that it is trained with; options given as well come first. The
embedded tiny policies play the environment that they were trained in:

    python examples/evaluate.py --env kitchen --agent model --model_name_or_path runs/kitchen --max_new_tokens 3

Exits with 1 if the environment failed in every episode, and with 2 if it could not be started.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import _paths  # noqa: F401
from tqdm.auto import tqdm

from trl_mise.agents import ExpertAgent, RandomAgent
from trl_mise.envs.base import EnvironmentFailure
from trl_mise.envs.registry import ENVIRONMENTS, EnvironmentSpec, environment_spec
from trl_mise.evaluation import Agent, evaluate

MODEL_OPTIONS = ("system_prompt", "temperature", "max_new_tokens", "max_episode_tokens", "history_window", "num_envs")
# Option -> its name in a training run's file. A policy is trained on samples and evaluated greedily: no temperature.
FROM_CONFIG = {
    "max_steps": "max_turns",
    **{name: name for name in ("model_name_or_path", "dtype", *MODEL_OPTIONS) if name != "temperature"},
}


def main(argv: list[str] | None = None) -> int:
    parser = argument_parser()
    options = parser.parse_args(argv)
    sys.path.insert(0, os.getcwd())  # where an environment of one's own is looked for
    try:
        options = with_config(options)
        spec = environment_spec(options.env)
        factory = spec.factory(**options.env_kwargs)
        tasks = spec.make_tasks(
            options.split, options.episodes, options.seed, **{**spec.evaluation_tasks, **options.task_kwargs}
        )
        agent = make_agent(spec, options)
        with tqdm(total=len(tasks), unit="episode", leave=False, dynamic_ncols=True, disable=None) as bar:
            result = evaluate(
                agent,
                factory,
                tasks,
                max_steps=options.max_steps or spec.max_steps,
                on_progress=lambda done, total: bar.update(done - bar.n),
            )
    except (EnvironmentFailure, ImportError, OSError, TypeError, ValueError) as error:
        parser.exit(2, f"evaluate.py: {error}\n")
    print(f"{options.env}, {options.split} split, {options.agent} agent, seed {options.seed}\n{result.table()}")
    for message in result.errors[:3]:
        print(f"failed: {message}")
    if options.output is not None:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"options": given, **result.as_dict()}, indent=1, default=str)
        options.output.write_text(text + "\n", encoding="utf-8")
    return int(result.num_errors == len(result.episodes))


def make_agent(spec: EnvironmentSpec, options: argparse.Namespace) -> Agent:
    if options.agent == "random":
        return RandomAgent(options.seed)
    if options.agent == "expert":
        return ExpertAgent(spec.expert_action())
    if options.model_name_or_path is None:
        raise ValueError("--agent model needs --model_name_or_path (a folder, or a name on the hub)")
    from trl_mise.model_agent import ModelAgent  # torch and transformers take seconds; the others do without

    given = {name: getattr(options, name) for name in MODEL_OPTIONS if getattr(options, name) is not None}
    return ModelAgent.from_pretrained(
        options.model_name_or_path, dtype=options.dtype or "auto", device=options.device, seed=options.seed, **given
    )


def with_config(options: argparse.Namespace) -> argparse.Namespace:
    """The options, with what `--config` says where they were not given."""
    if options.config is None:
        return options
    import yaml

    config = yaml.safe_load(options.config.read_text(encoding="utf-8")) or {}
    for option, name in FROM_CONFIG.items():
        if name in config and getattr(options, option) is None:
            setattr(options, option, config[name])
    return options


def argument_parser() -> argparse.ArgumentParser:
    # Not TrlParser: importing TRL takes longer than playing.
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--env", required=True, help=f"{', '.join(ENVIRONMENTS)}, or module:factory of your own")
    parser.add_argument("--agent", choices=["random", "expert", "model"], default="random")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--split", default="test", help="of the tasks")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks, and of what an agent draws")
    parser.add_argument("--max_steps", type=int, help="most actions of an episode; the default is the environment's")
    parser.add_argument("--env_kwargs", type=json.loads, default={}, help="arguments of the environment, JSON")
    parser.add_argument("--task_kwargs", type=json.loads, default={}, help="arguments of its make_tasks, JSON")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers and all episodes")
    model = parser.add_argument_group("the model agent")
    model.add_argument("--model_name_or_path", help="folder, or name on the hub")
    model.add_argument("--config", type=Path, help="YAML file of a training run")
    model.add_argument("--dtype", help="of the weights: auto (default), float32, bfloat16")
    model.add_argument("--device", help="default: a GPU where there is one")
    model.add_argument("--system_prompt", help="what the policy is told; the same as in its training")
    model.add_argument("--temperature", type=float, help="default: 0, greedy")
    model.add_argument("--max_new_tokens", type=int, help="most tokens of an action")
    model.add_argument("--max_episode_tokens", type=int, help="most tokens that the policy reads and says")
    model.add_argument("--history_window", type=int, help="turns that it sees before the present one; default: all")
    model.add_argument("--num_envs", type=int, help="environments side by side")
    return parser


if __name__ == "__main__":
    sys.exit(main())
