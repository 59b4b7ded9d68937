"""Options of `trl-mise train`: where they come from (defaults, file, command line), and a help text to be read."""

import argparse
import difflib
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..envs.registry import EnvironmentSpec
from .common import json_object, read_yaml

HELP_GROUPS: Mapping[str, Sequence[str]] = {
    "task": (
        "env",
        "env_kwargs",
        "train_tasks",
        "eval_tasks",
        "train_split",
        "eval_split",
        "task_seed",
        "task_kwargs",
    ),
    "model": (
        *("model_name_or_path", "dtype", "use_peft", "lora_r", "lora_alpha", "load_in_4bit", "load_in_8bit"),
        "attn_implementation",
    ),
    "run": (
        *("output_dir", "total_episodes", "learning_rate", "per_device_train_batch_size"),
        *("gradient_accumulation_steps", "num_mini_batches", "num_ppo_epochs", "kl_coef", "gamma", "seed"),
        *("eval_strategy", "eval_steps", "save_strategy", "save_steps", "resume_from_checkpoint", "report_to"),
        "push_to_hub",
    ),
    "episodes": (
        *("max_turns", "max_new_tokens", "max_episode_tokens", "temperature", "system_prompt", "history_window"),
        *("num_envs", "env_isolation", "max_env_error_rate", "generation_backend"),
    ),
    "hindsight": (
        *("hindsight_coef", "hindsight_placement", "hindsight_gate", "hindsight_patience"),
        *(
            "hindsight_prompt",
            "verdict_mode",
            "evaluator_view",
            "evaluator_model",
            "calibration_target",
            "posthoc_calibrator",
        ),
    ),
}
"""What most people touch; `--help_all` lists the rest."""

REAL_MODEL_DEFAULTS: Mapping[str, Any] = {
    "learning_rate": 1e-5,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 16,
    "num_mini_batches": 4,
    "num_ppo_epochs": 2,
    "total_episodes": 4096,
    "max_turns": 16,
    "max_new_tokens": 32,
    "max_episode_tokens": 4096,
    "temperature": 1.0,
    "kl_coef": 0.02,
    "logging_steps": 1,
    "num_sample_generations": 0,
    "report_to": "none",
}
"""For an instruct model of any size with an adapter; the embedded tiny policies bring their own."""


def defaults_for(spec: EnvironmentSpec) -> dict[str, Any]:
    """Options for an instruct model in this environment."""
    prompt = {} if spec.system_prompt is None else {"system_prompt": spec.system_prompt}
    return {**REAL_MODEL_DEFAULTS, **spec.training_options, **prompt}


@dataclass
class TaskArguments:
    """The environment and its tasks."""

    env: str | None = field(
        default=None, metadata={"help": "Environment: a name (trl-mise envs), or module:factory of your own."}
    )
    env_kwargs: str = field(default="{}", metadata={"help": "Arguments of the environment, a JSON object."})
    task_kwargs: str = field(default="{}", metadata={"help": "Arguments of its make_tasks, a JSON object."})
    train_tasks: int = field(default=2048, metadata={"help": "Training tasks; repeated once all were used."})
    eval_tasks: int = field(
        default=64, metadata={"help": "Held-out tasks for greedy evaluations before and after; 0: none."}
    )
    train_split: str = field(default="train", metadata={"help": "Split of the training tasks."})
    eval_split: str = field(default="test", metadata={"help": "Split of the held-out tasks."})
    task_seed: int = field(default=0, metadata={"help": "Which tasks are drawn."})


class Given:
    """What was said on the command line and in `--config`, before any defaults.

    Args:
        parser (`TrlParser`): knows all options.
        argv (`Sequence[str]`): the command line.

    Raises:
        ValueError: names an option that does not exist, and the one that may be meant.
        OSError: the file cannot be read.
    """

    def __init__(self, parser: Any, argv: Sequence[str]) -> None:
        self._parser = parser
        path, arguments = _without_config(argv)
        known = {action.dest for action in parser._actions}
        self.config = _with_environment(read_yaml(path)) if path is not None else {}
        for name in self.config:
            if name not in known:
                raise ValueError(f"--config {path}: {name!r} is no option{_meant(name, known)}")
        self.options, unknown = _explicit(parser, arguments)
        for name in unknown:
            meant = _meant(name.lstrip("-").split("=")[0], known, "--")
            raise ValueError(f"{name} is no option{meant}; trl-mise train --help lists what most people touch")

    def value(self, name: str) -> Any:
        """Of the command line, else of the file, else `None`."""
        return self.options.get(name, self.config.get(name))

    def over(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """These defaults, with the file over them and the command line over both."""
        return {**defaults, **self.config, **self.options}

    def instances(self, merged: Mapping[str, Any]) -> tuple[Any, ...]:
        """The parser's dataclasses with these values."""
        self._parser.set_defaults_with_config(**merged)
        made: tuple[Any, ...] = self._parser.parse_args_into_dataclasses(args=[], look_for_args_file=False)
        return made


def mapping(name: str, value: str | Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object from the command line, or a mapping from a YAML file."""
    if isinstance(value, Mapping):
        return dict(value)
    try:
        return json_object(value)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--{name}: {error}") from None


def _without_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    arguments, path = list(argv), None
    for index, argument in enumerate(argv):
        if argument == "--config":
            if index + 1 == len(argv):
                raise ValueError("--config needs a path: --config run.yaml")
            path, arguments = argv[index + 1], [*argv[:index], *argv[index + 2 :]]
        elif argument.startswith("--config="):
            path, arguments = argument.partition("=")[2], [*argv[:index], *argv[index + 1 :]]
    return path, arguments


def _with_environment(config: dict[str, Any]) -> dict[str, Any]:
    """A mapping under `env` sets environment variables, as in TRL's files; a text there names the environment."""
    variables = config.get("env")
    if not isinstance(variables, Mapping):
        return config
    os.environ.update({name: str(value) for name, value in variables.items()})
    return {name: value for name, value in config.items() if name != "env"}


def _explicit(parser: Any, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What the command line says, and what of it nobody knows."""
    before = [(action, action.default, action.required) for action in parser._actions]
    try:
        for action, _, _ in before:
            action.default, action.required = argparse.SUPPRESS, False
        namespace, unknown = parser.parse_known_args(arguments)
    finally:
        for action, default, required in before:
            action.default, action.required = default, required
    return vars(namespace), [name for name in unknown if name.startswith("-")] or unknown


def _meant(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, [*known], n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def help_text(parser: Any) -> str:
    """The options that most people touch, by topic."""
    actions = {action.dest: action for action in reversed(parser._actions)}
    lines = [
        "usage: trl-mise train --env ENV [--config run.yaml] [options]",
        "",
        "Train an agent on an environment. Every field of MISEConfig and of TRL's ModelConfig is an option, on the",
        "command line or in the YAML file; the command line comes first.",
    ]
    for title, names in HELP_GROUPS.items():
        lines += ["", f"{title}:"]
        for name in names:
            action = actions[name]
            default = "" if action.default in (None, argparse.SUPPRESS, "{}") else f" [{action.default}]"
            text = " ".join(str(action.help or "").split()).split(". ")[0].rstrip(".")
            lines += textwrap.wrap(
                f"{text.replace('%%', '%')}{default}",
                width=110,
                initial_indent=f"  --{name}".ljust(34),
                subsequent_indent=" " * 34,
            )
    lines += ["", f"--help_all lists all {len(actions)} options.", "", EXAMPLES]
    return "\n".join(lines)


EXAMPLES = """\
examples:
  trl-mise train --env kitchen --output_dir runs/kitchen          the embedded tiny policy, CPU, a minute
  trl-mise train --env my_module:MyEnv --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --use_peft \\
      --output_dir runs/mine                                      an environment of your own, GPU
  accelerate launch -m trl_mise.cli train --config run.yaml       several processes"""
