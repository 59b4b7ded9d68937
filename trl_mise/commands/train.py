"""`trl-mise train`: trains an agent on any environment, evaluates it before and after, and saves it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ..envs.base import EnvironmentFactory
from ..envs.registry import EnvironmentSpec, environment_spec
from .common import RUN_CONFIG_NAME
from .train_options import REAL_MODEL_DEFAULTS, Given, TaskArguments, help_text, mapping


@dataclass(frozen=True)
class Policy:
    """What is trained, and what it can be trained on.

    Args:
        model, tokenizer: the policy.
        peft_config (*optional*): the adapter to train in its place.
        env_kwargs, task_kwargs (`Mapping`): of the environment and of its `make_tasks`, as far as the policy asks for
            them.
    """

    model: Any
    tokenizer: Any
    peft_config: Any = None
    env_kwargs: Mapping[str, Any] | None = None
    task_kwargs: Mapping[str, Any] | None = None


def main(argv: Sequence[str]) -> int:
    from .._trl import model_arguments
    from ..config import MISEConfig

    parser = _parser((TaskArguments, model_arguments().config_class, MISEConfig))
    if {"-h", "--help"} & set(argv):
        print(help_text(parser))
        return 0
    if "--help_all" in argv:
        print(parser.format_help(), end="")
        return 0
    given = Given(parser, argv)
    spec = environment_spec(_environment_name(given))
    recipe = None if given.value("model_name_or_path") else _tiny_recipe(spec, given)
    merged = given.over({**_defaults(spec, recipe), "output_dir": f"runs/{spec.name.replace(':', '.')}"})
    task, model_args, args = given.instances(merged)
    policy = _load(model_args) if recipe is None else _load_tiny(recipe)
    env_kwargs = mapping("env_kwargs", task.env_kwargs) or dict(policy.env_kwargs or {})
    task_kwargs = mapping("task_kwargs", task.task_kwargs) or dict(policy.task_kwargs or {})
    known = {**merged, "env": spec.name, "env_kwargs": env_kwargs, "task_kwargs": task_kwargs}
    return _run(_trainer(spec, policy, args, task, env_kwargs, task_kwargs), known, args)


def _parser(classes: Sequence[type]) -> Any:
    from .._trl import TrlParser

    # Without abbreviations: --learning_rat must be an error, not a learning rate.
    usage = "trl-mise train --env ENV [--config run.yaml] [options]"
    return TrlParser(classes, prog="trl-mise train", usage=usage, allow_abbrev=False)


def _environment_name(given: Given) -> str:
    name = given.value("env")
    if name is None:
        raise ValueError("--env is required: a name (trl-mise envs lists them), or module:factory of your own")
    return str(name)


def _defaults(spec: EnvironmentSpec, recipe: Any) -> dict[str, Any]:
    if recipe is not None:
        return dict(recipe.training_defaults())
    prompt = {} if spec.system_prompt is None else {"system_prompt": spec.system_prompt}
    return {**REAL_MODEL_DEFAULTS, **prompt}


def _tiny_recipe(spec: EnvironmentSpec, given: Given) -> Any:
    """The embedded policy of an environment that has one.

    Raises:
        ValueError: it has none, or other arguments are asked for than it knows.
    """
    if spec.name not in ("kitchen", "webshop"):
        raise ValueError(
            f"--model_name_or_path is required for {spec.name}: a folder, or a name on the hub such as "
            "Qwen/Qwen2.5-0.5B-Instruct (only kitchen and webshop have an embedded tiny policy)"
        )
    for name in ("env_kwargs", "task_kwargs"):
        if mapping(name, given.value(name) or "{}"):
            raise ValueError(
                f"--{name}: the embedded tiny policy knows its own small {spec.name} only; leave it out, or give a "
                "model with --model_name_or_path"
            )
    from ..recipes import kitchen_recipe
    from ..webshop_recipe import WebShopRecipe

    return WebShopRecipe() if spec.name == "webshop" else kitchen_recipe("hard")


def _load_tiny(recipe: Any) -> Policy:
    import torch

    from ..tiny import cached

    # For matrices this small, handing work to a second thread costs more than it saves.
    torch.set_num_threads(1)
    model, tokenizer = cached(recipe, progress=_WarmStart())
    kwargs = getattr(recipe, "env_kwargs", None)
    return Policy(model, tokenizer, env_kwargs=kwargs, task_kwargs=kwargs)


class _WarmStart:
    """A progress bar for `cached`; appears only if there is something to do."""

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


def _load(model_args: Any) -> Policy:
    """The model, by TRL's own rules."""
    from accelerate import PartialState
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .._trl import model_arguments

    if (model_args.load_in_4bit or model_args.load_in_8bit) and not model_args.use_peft:
        raise ValueError("--load_in_4bit and --load_in_8bit: a quantised base cannot be trained; add --use_peft")
    name, trl = model_args.model_name_or_path, model_arguments()
    where = {"revision": model_args.model_revision}
    tokenizer = AutoTokenizer.from_pretrained(name, **where)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        raise ValueError(
            f"--model_name_or_path {name}: its tokenizer has no chat template; episodes are conversations, so name an "
            "instruct model"
        )
    options = {**where, "dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
    quantisation = trl.get_quantization_config(model_args)
    if quantisation is not None:
        # Each process has a copy of its own.
        options.update(quantization_config=quantisation, device_map={"": PartialState().device})
    model = AutoModelForCausalLM.from_pretrained(name, **options)
    return Policy(model, tokenizer, trl.get_peft_config(model_args))


def _trainer(
    spec: EnvironmentSpec, policy: Policy, args: Any, task: TaskArguments, env_kwargs: Any, task_kwargs: Any
) -> Any:
    from datasets import Dataset

    from ..trainer import MISETrainer

    factory: EnvironmentFactory = spec.factory(**env_kwargs)

    def rows(split: str, number: int) -> Any:
        return Dataset.from_list(spec.make_tasks(split, number, task.task_seed, **task_kwargs))

    return MISETrainer(
        args=args,
        processing_class=policy.tokenizer,
        model=policy.model,
        train_dataset=rows(task.train_split, task.train_tasks),
        eval_dataset=rows(task.eval_split, task.eval_tasks) if task.eval_tasks else None,
        peft_config=policy.peft_config,
        environment_factory=factory,
    )


def _run(trainer: Any, known: Mapping[str, Any], args: Any) -> int:
    """Evaluates, trains, evaluates, saves, and says what to look at next."""
    is_main, evaluates = trainer.is_world_process_zero(), trainer.eval_dataset is not None
    if is_main:
        _write_config(Path(args.output_dir) / RUN_CONFIG_NAME, known)
    before = trainer.evaluate() if evaluates else {}
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    after = trainer.evaluate() if evaluates else {}
    trainer.save_model()
    if args.push_to_hub:
        trainer.push_to_hub()
    if not is_main:
        return 0
    if evaluates and "eval_success" in before and "eval_success" in after:
        print(
            f"success {before['eval_success']:.2f} before training, {after['eval_success']:.2f} after "
            f"({int(after['eval_episodes'])} held-out tasks, greedy)"
        )
    sampled = [entry["env/success"] for entry in trainer.state.log_history if "env/success" in entry]
    if sampled:
        print(f"success {mean(sampled[:3]):.2f} of the first sampled episodes, {mean(sampled[-3:]):.2f} of the last")
    print(f"saved to {args.output_dir}. Next:\n  trl-mise report {args.output_dir}")
    print(f"  trl-mise rollout --model_name_or_path {args.output_dir}")
    return 0


def _write_config(path: Path, known: Mapping[str, Any]) -> None:
    """All that was asked for, so that `--config` of it does the same again, and `eval` and `rollout` know it."""
    import yaml

    values = {name: value for name, value in known.items() if name not in ("resume_from_checkpoint", "hub_token")}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=False)
    path.write_text(f"# trl-mise train --config {path.name}\n{text}", encoding="utf-8")
