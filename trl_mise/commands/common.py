"""What the commands share: options of environments and of models, and what a run's folder knows of both."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..envs.registry import EnvironmentSpec
from ..evaluation import Agent
from ..run_data import RUN_NAME, read_object

RUN_CONFIG_NAME = "run.yaml"
"""What `trl-mise train` was called with, in `output_dir`; `--config` takes it."""

MODEL_OPTIONS = (
    *("system_prompt", "chat_template_kwargs", "temperature", "max_new_tokens", "max_episode_tokens"),
    *("history_window", "num_envs"),
)
# Option -> its name in a training run's file. A policy is trained on samples and evaluated greedily: no temperature.
FROM_CONFIG = {
    "max_steps": "max_turns",
    **{
        name: name
        for name in ("env", "env_kwargs", "task_kwargs", "model_name_or_path", "dtype", *MODEL_OPTIONS)
        if name != "temperature"
    },
}


def new_parser(command: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser that is named after the command; unknown options end it with one line."""
    return _Parser(
        prog=f"trl-mise {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line: the usage would hide it."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message}; run {self.prog} --help\n")


def add_environment_options(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument(
        "--env", required=required, help="name of an environment (trl-mise envs), or module:factory of your own"
    )
    parser.add_argument(
        "--env_kwargs", type=json_object, help="arguments of the environment, JSON: '{\"stations\": 4}'"
    )


def add_task_options(parser: argparse.ArgumentParser, *, episodes: int) -> None:
    parser.add_argument("--episodes", type=int, default=episodes, help=f"default: {episodes}")
    parser.add_argument("--split", default="test", help="of the tasks; default: test")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks, and of what an agent draws; default: 0")
    parser.add_argument("--max_steps", type=int, help="most actions of an episode; the default is the environment's")
    parser.add_argument("--task_kwargs", type=json_object, help="arguments of its make_tasks, JSON")


def add_agent_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--agent", choices=["random", "expert", "model"], help="default: model if one is named, otherwise random"
    )
    model = parser.add_argument_group("the model agent")
    model.add_argument("--model_name_or_path", help="folder that a trainer saved to, LoRA adapter, or name on the hub")
    model.add_argument("--config", type=Path, help="YAML file of a training run; a folder of a run brings its own")
    model.add_argument("--dtype", help="of the weights: auto (default), float32, bfloat16")
    model.add_argument("--device", help="default: a GPU where there is one")
    model.add_argument("--system_prompt", help="what the policy is told; the same as in its training")
    model.add_argument("--chat_template_kwargs", type=json_object, help="passed to the chat template, JSON")
    model.add_argument("--temperature", type=float, help="default: 0, greedy")
    model.add_argument("--max_new_tokens", type=int, help="most tokens of an action")
    model.add_argument("--max_episode_tokens", type=int, help="most tokens that the policy reads and says")
    model.add_argument("--history_window", type=int, help="turns that it sees before the present one; default: all")
    model.add_argument("--num_envs", type=int, help="environments side by side")


def json_object(text: str) -> dict[str, Any]:
    """An option's value as a mapping.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object; write it as {{"name": value}}')
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file's mapping.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be read.
    """
    import yaml

    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path}: no YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config {path} must hold a mapping of options to values, got {type(config).__name__}")
    return config


def with_known_options(options: argparse.Namespace) -> argparse.Namespace:
    """Fills in what was not given: from `--config`, then from the folder of the model's run."""
    if options.config is not None:
        _fill(options, read_yaml(options.config))
    if options.model_name_or_path is not None:
        _fill(options, known_of_run(options.model_name_or_path))
    if options.agent is None:
        options.agent = "random" if options.model_name_or_path is None else "model"
    if options.env is None:
        raise ValueError("--env is required: a name (trl-mise envs lists them), or module:factory of your own")
    return options


def known_of_run(folder: str) -> dict[str, Any]:
    """The options of the run that saved to this folder (or to the one above, for a checkpoint); empty if unknown."""
    for candidate in (Path(folder), Path(folder).parent):
        known: dict[str, Any] = {}
        known.update(read_object(candidate / RUN_NAME, []).get("options") or {})
        if (candidate / RUN_CONFIG_NAME).is_file():
            known.update(read_yaml(candidate / RUN_CONFIG_NAME))
        if known:
            return known
    return {}


def _fill(options: argparse.Namespace, known: Mapping[str, Any]) -> None:
    for option, name in FROM_CONFIG.items():
        if known.get(name) is not None and getattr(options, option) is None:
            setattr(options, option, known[name])


def tasks_to_play(spec: EnvironmentSpec, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows that the options of [`add_task_options`] ask for."""
    task_kwargs = {**spec.evaluation_tasks, **(options.task_kwargs or {})}
    return spec.make_tasks(options.split, options.episodes, options.seed, **task_kwargs)


def make_agent(expert: Any, options: argparse.Namespace) -> Agent:
    """The agent that the options name.

    Args:
        expert (`Callable`): gives the environment's `expert_action`.
        options (`Namespace`): of [`add_agent_options`], completed.
    """
    from ..agents import ExpertAgent, RandomAgent

    if options.agent == "random":
        return RandomAgent(options.seed)
    if options.agent == "expert":
        return ExpertAgent(expert())
    return make_model_agent(options)


def make_model_agent(options: argparse.Namespace) -> Any:
    if options.model_name_or_path is None:
        raise ValueError("--agent model needs --model_name_or_path (a folder, or a name on the hub)")
    quiet_downloads()
    from ..model_agent import ModelAgent  # torch and transformers take seconds; the others do without

    given = {name: getattr(options, name) for name in MODEL_OPTIONS if getattr(options, name) is not None}
    return ModelAgent.from_pretrained(
        options.model_name_or_path, dtype=options.dtype or "auto", device=options.device, seed=options.seed, **given
    )


def quiet_downloads() -> None:
    """Loading weights needs no progress bar between what a command has to say."""
    from transformers.utils import logging

    logging.disable_progress_bar()


class WarmStartProgress:
    """A progress bar for `trl_mise.tiny.cached`; appears only if there is something to do."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, name: str, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, dynamic_ncols=True, disable=None)
        self._bar.set_description(f"warm start of the tiny policy ({name})", refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()
