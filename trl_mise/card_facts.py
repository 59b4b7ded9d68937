"""What is known of a trained model, asked of its trainer and of its run's folder: what its model card is written from.

Neither torch nor TRL: the trainer is asked, whichever it is.
"""

import ast
import functools
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from .envs.registry import ENVIRONMENTS
from .run_data import EVENTS_NAME, RUN_NAME, read_lines, read_object
from .versions import NEEDED, report

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

SHOWN = {
    "learning_rate": "learning rate",
    "num_ppo_epochs": "PPO epochs on a batch",
    "num_mini_batches": "minibatches of an epoch",
    "num_iterations": "iterations on a batch",
    "num_generations": "completions of a prompt",
    "kl_coef": "weight of the KL to the reference",
    "temperature": "sampling temperature",
    "hindsight_coef": "weight of the verdicts",
    "max_turns": "most actions of an episode",
    "max_new_tokens": "most tokens of an action",
    "max_completion_length": "most tokens of a completion",
}
"""Options that are told whatever their value."""
LEFT_OUT = ("vllm_server_", "num_envs", "log_", "health_warnings", "check_environment")
"""Beginnings of options that say where it was computed, or what was shown of it, but not what."""


@dataclass(frozen=True)
class EnvironmentFacts:
    """What the model was trained in.

    Args:
        name (`str`): for people.
        source (`str`, *optional*): `module:name` of its class or factory, where others can import it.
        kwargs (`Mapping`): arguments that it is made with.
    """

    name: str
    source: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, factory: Any) -> "EnvironmentFacts":
        """From what makes environments: a class, a function, a `functools.partial` of either, or several by name."""
        if isinstance(factory, Mapping):  # several, which GRPOTrainer tells apart by a column of the dataset
            return cls(", ".join(cls.of(one).name for one in factory.values()))
        kwargs: dict[str, Any] = {}
        made_of = factory
        while isinstance(made_of, functools.partial):
            kwargs = {**made_of.keywords, **kwargs}
            if made_of.args:  # a wrapper, say, about another factory: not to be written in one line
                return cls(f"{_name(made_of.func)} of {', '.join(_name(arg) for arg in made_of.args)}")
            made_of = made_of.func
        module, name = getattr(made_of, "__module__", None), getattr(made_of, "__qualname__", None)
        importable = module != "__main__" and all(part.isidentifier() for part in f"{module}.{name}".split("."))
        known = [spec.name for spec in ENVIRONMENTS.values() if spec.environment == f"{module}:{name}"]
        label = f"{known[0]} ({name})" if known else _name(made_of)
        return cls(label, f"{module}:{name}" if importable and name else None, kwargs)

    @property
    def can_be_made(self) -> bool:
        """Whether a line of Python makes it."""
        return self.source is not None and all(
            name.isidentifier() and is_literal(value) for name, value in self.kwargs.items()
        )


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells.

    Args:
        method (`str`): `"MISE"`, `"PPO"` or `"MISE-GRPO"`.
        model_name (`str`): of the heading.
        repository (`str`, *optional*): its name on the hub.
        base_model (`str`, *optional*): name on the hub of what was trained; `None` for a folder.
        adapter (`str`, *optional*): what was trained in place of all parameters.
        quantisation (`str`, *optional*): of the base, in training.
        num_parameters, num_trainable_parameters (`int`): of the policy.
        environment ([`EnvironmentFacts`], *optional*): `None` for prompts.
        rewards (`tuple[str, ...]`): names of reward functions or models.
        train_tasks, eval_tasks (`int`, *optional*): rows of the datasets.
        task (`Mapping`): a task that can be played, for the example.
        updates, total_updates (`int`): done, and planned.
        episodes, batch_size, processes, seed (`int`): of the training.
        options (`Any`): the configuration.
        changed (`Mapping`): options of the judge and the environment that are not at their defaults.
        uses_hindsight (`bool`): whether steps were judged.
        log (`Sequence[Mapping]`): the trainer's log.
        health (`tuple[str, ...]`): warnings about the judge.
        resumed (`tuple[int, ...]`): updates after which the run was interrupted and went on.
        versions (`Mapping[str, str]`): of the packages.
        tags (`tuple[str, ...]`): of the trainer, and others.
        dataset_name, license (`str`, *optional*): as given.
        paper (`Mapping[str, str]`): title, id, citation.
    """

    method: str
    model_name: str
    repository: str | None
    base_model: str | None
    adapter: str | None
    quantisation: str | None
    num_parameters: int
    num_trainable_parameters: int
    environment: EnvironmentFacts | None
    rewards: tuple[str, ...]
    train_tasks: int | None
    eval_tasks: int | None
    task: Mapping[str, Any]
    updates: int
    total_updates: int
    episodes: int | None
    batch_size: int
    processes: int
    seed: int
    options: Any
    changed: Mapping[str, Any]
    uses_hindsight: bool
    log: Sequence[Mapping[str, Any]]
    health: tuple[str, ...]
    resumed: tuple[int, ...]
    versions: Mapping[str, str]
    tags: tuple[str, ...]
    dataset_name: str | None
    license: str | None
    paper: Mapping[str, str]

    @property
    def is_grpo(self) -> bool:
        return self.method == "MISE-GRPO"

    @property
    def train_logs(self) -> list[Mapping[str, Any]]:
        """Those that tell how training episodes went."""
        return [entry for entry in self.log if "env/success" in entry or "reward" in entry]

    def evaluations(self) -> dict[str, list[Mapping[str, Any]]]:
        """Entries of the log by the evaluated dataset (`"eval"`, or `"eval_<name>"`), oldest first."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for entry in self.log:
            for name in entry:
                if name.startswith("eval") and name.endswith(("_success", "_reward")):
                    found.setdefault(name.rpartition("_")[0], []).append(entry)
        return found


def facts_of(
    trainer: Any,
    policy: Any,
    *,
    environment: Any,
    option_classes: Sequence[type],
    paper: Mapping[str, str],
    dataset_name: str | None = None,
    tags: Sequence[str] = (),
    license: str | None = None,
    model_name: str | None = None,
) -> CardFacts:
    """Asks a trainer.

    Args:
        trainer (`Trainer`): `MISETrainer` or `MISEGRPOTrainer`.
        policy (`nn.Module`): unwrapped.
        environment (`Callable`, *optional*): makes the environments.
        option_classes (`Sequence[type]`): dataclasses whose options are told where they are not at their defaults.
        paper (`Mapping[str, str]`): title, id, citation.
        dataset_name, tags, license, model_name: as given by the user.
    """
    args, state = trainer.args, trainer.state
    trainable, total = count_parameters(policy)
    record = read_object(Path(args.output_dir) / RUN_NAME, []) if state.global_step else {}
    repository = getattr(trainer, "hub_model_id", None) or args.hub_model_id
    return CardFacts(
        method=trainer._name if trainer.uses_hindsight else "PPO",
        model_name=model_name or (repository or str(Path(args.output_dir).absolute())).rpartition("/")[2],
        repository=repository,
        base_model=_on_the_hub(policy),
        adapter=_adapter(policy),
        quantisation=_quantisation(policy),
        num_parameters=total,
        num_trainable_parameters=trainable,
        environment=None if environment is None else EnvironmentFacts.of(environment),
        rewards=tuple(getattr(trainer, "reward_func_names", ())),
        train_tasks=num_rows(trainer.train_dataset),
        eval_tasks=num_rows(trainer.eval_dataset),
        task=_a_task(trainer.train_dataset) if environment is not None else {},
        updates=state.global_step,
        total_updates=state.max_steps or getattr(args, "num_total_batches", 0),
        episodes=_episodes(trainer),
        batch_size=args.batch_size,
        processes=trainer.accelerator.num_processes,
        seed=args.seed,
        options=args,
        changed=dict(_changed(args, option_classes)),
        uses_hindsight=trainer.uses_hindsight,
        log=list(state.log_history),
        health=tuple(_health(args.output_dir)) if state.global_step else (),
        resumed=tuple(int(entry["update"]) for entry in record.get("resumed", ()) if "update" in entry),
        versions={name: known for name, known in report().items() if name in (*NEEDED, "python")},
        tags=tuple(sorted({*trainer._tag_names, *tags} - (set() if trainer.uses_hindsight else {"mise"}))),
        dataset_name=dataset_name,
        license=license,
        paper=paper,
    )


def is_literal(value: Any) -> bool:
    """Whether Python reads the value back from what it prints, in a line that can be read."""
    written = repr(value)
    try:
        return len(written) <= 200 and bool(ast.literal_eval(written) == value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _name(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None) or type(thing).__qualname__
    return "a function of the training script" if "<lambda>" in name else name.rpartition(".")[2]


def _on_the_hub(policy: Any) -> str | None:
    """The base's name; a folder of this machine says nothing to others."""
    name = str(getattr(policy.config, "_name_or_path", "") or "")
    return name if _REPOSITORY.fullmatch(name) and not Path(name).is_dir() else None


def _adapter(policy: Any) -> str | None:
    """The trained adapter in words; "LoRA, rank 8, alpha 16, on q_proj and v_proj"."""
    configs = getattr(policy, "peft_config", None)
    if not configs:
        return None
    active = getattr(policy, "active_adapter", None)
    config = configs.get(active) if isinstance(active, str) else None
    config = config or next(iter(configs.values()))
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    parts = ["LoRA" if kind == "LORA" else kind]
    for name, label in (("r", "rank"), ("lora_alpha", "alpha")):
        if getattr(config, name, None) is not None:
            parts.append(f"{label} {getattr(config, name)}")
    targets = getattr(config, "target_modules", None)
    if targets:
        parts.append(f"on {targets if isinstance(targets, str) else ', '.join(sorted(targets))}")
    return ", ".join(parts)


def _quantisation(policy: Any) -> str | None:
    config = getattr(policy.config, "quantization_config", None)
    if config is None:
        return None
    known = config if isinstance(config, Mapping) else config.to_dict()
    if known.get("load_in_4bit"):
        return f"4 bits ({known.get('bnb_4bit_quant_type', 'fp4')})"
    return "8 bits" if known.get("load_in_8bit") else str(known.get("quant_method", "quantised"))


def count_parameters(policy: Any) -> tuple[int, int]:
    """Trainable ones, and all; quantised weights are counted as what they stand for."""
    if hasattr(policy, "get_nb_trainable_parameters"):
        trainable, total = policy.get_nb_trainable_parameters()
        return int(trainable), int(total)
    if hasattr(policy, "num_parameters"):
        return int(policy.num_parameters(only_trainable=True)), int(policy.num_parameters())
    sizes = [(p.numel(), p.requires_grad) for p in policy.parameters()]
    return sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)


def _episodes(trainer: Any) -> int | None:
    """PPO's state counts them; GRPO's trainer counts its batches."""
    if hasattr(trainer.state, "episode"):
        return int(trainer.state.episode)
    batches = getattr(trainer, "_num_batches", None)
    return None if batches is None else int(batches) * int(trainer.args.batch_size)


def num_rows(dataset: Any) -> int | None:
    """Of a dataset, or of several by name; `None` where there is none, or where it is a stream."""
    if isinstance(dataset, Mapping):
        return sum(num_rows(part) or 0 for part in dataset.values())
    return len(dataset) if hasattr(dataset, "__len__") else None


def _a_task(dataset: Any) -> Mapping[str, Any]:
    """The first row, if it can be written in a line; a task that only says its seed otherwise."""
    if not hasattr(dataset, "__getitem__"):
        return {}
    row = {name: value for name, value in dict(dataset[0]).items() if value is not None}
    return row if is_literal(row) else {"seed": row["seed"]} if is_literal(row.get("seed")) else {}


def _changed(args: Any, classes: Sequence[type]) -> Iterator[tuple[str, Any]]:
    """Options that are not at their defaults, by name."""
    names = {name for cls in classes for name in inspect.get_annotations(cls)}
    for option in sorted(fields(args), key=lambda option: option.name):
        if option.name not in names or option.name in SHOWN or option.name.startswith(LEFT_OUT):
            continue
        default = option.default if option.default is not MISSING else None
        if option.default_factory is not MISSING:
            default = option.default_factory()
        if getattr(args, option.name) != default:
            yield option.name, getattr(args, option.name)


def _health(output_dir: str) -> Iterator[str]:
    """What was warned of the judge, of the whole run, interruptions included."""
    for event in read_lines(Path(output_dir) / EVENTS_NAME, []):
        if event.get("kind") == "health":
            yield f"update {event.get('update')}: {event.get('message')}"
