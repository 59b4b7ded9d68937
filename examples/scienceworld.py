"""An agent learns elementary science in ScienceWorld, paid only for a finished task.

    pip install "trl-mise[scienceworld]"
    accelerate launch examples/scienceworld.py --output_dir runs/scienceworld            # the tiny policy, CPU
    accelerate launch examples/scienceworld.py --config examples/configs/scienceworld.yaml  # Qwen2.5-7B-Instruct, GPU

Every field of `MISEConfig` is a flag; `--config file.yaml` sets them from a file. Writes the trained policy,
`summary.json`, `learning_curve.png` and `trajectories.jsonl` to `--output_dir`. The tiny policy knows one task, to
find the longest-lived animal, and its words are those of its variations; a real model gets all thirty tasks, or those
that `--task` names.
"""

from dataclasses import dataclass, field

from _common import ModelArguments, Stopwatch, load_tiny, train_and_report
from datasets import Dataset

from trl_mise import MISEConfig, MISETrainer
from trl_mise._trl import TrlParser
from trl_mise.envs.registry import ENVIRONMENTS
from trl_mise.envs.scienceworld import ScienceWorldEnv, make_tasks
from trl_mise.scienceworld_recipe import TASK, ScienceWorldRecipe

REAL_MODEL_DEFAULTS = {
    "learning_rate": 1e-5,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 32,
    "num_mini_batches": 4,
    "num_ppo_epochs": 2,
    "total_episodes": 4096,
    "max_turns": 50,
    "max_new_tokens": 32,
    "max_episode_tokens": 6144,
    "num_envs": 8,
    "temperature": 1.0,
    "kl_coef": 0.02,
    "logging_steps": 1,
    "num_sample_generations": 0,
    "report_to": "none",
    "system_prompt": ENVIRONMENTS["scienceworld"].system_prompt,
}


@dataclass
class TaskArguments:
    """The tasks."""

    task: list[str] | None = field(
        default=None, metadata={"help": "Names of tasks, for a real model; several take turns. Default: all thirty."}
    )
    simplifications: str = field(
        default=ScienceWorldRecipe.simplifications, metadata={"help": "'easy', or a list with commas; '' for none."}
    )
    train_tasks: int = field(default=ScienceWorldRecipe.train_tasks, metadata={"help": "Training variations."})
    eval_episodes: int = field(
        default=ScienceWorldRecipe.eval_tasks, metadata={"help": "Held-out variations for the greedy evaluations."}
    )
    task_seed: int = field(default=ScienceWorldRecipe.task_seed, metadata={"help": "Which variations are drawn."})


def main() -> None:
    watch = Stopwatch()
    parser = TrlParser((TaskArguments, ModelArguments, MISEConfig))
    given, *_ = TrlParser((ModelArguments,)).parse_args_and_config(return_remaining_strings=True)
    is_tiny = given.model_name_or_path is None
    parser.set_defaults_with_config(**(ScienceWorldRecipe().training_defaults() if is_tiny else REAL_MODEL_DEFAULTS))
    tasks, model_args, args = parser.parse_args_and_config()

    if is_tiny:
        if tasks.task not in (None, [TASK]):
            parser.error(f"--task {tasks.task}: the tiny policy knows {TASK!r} alone; add --model_name_or_path")
        recipe = ScienceWorldRecipe(
            train_tasks=tasks.train_tasks,
            eval_tasks=tasks.eval_episodes,
            task_seed=tasks.task_seed,
            simplifications=tasks.simplifications,
        )
        model, tokenizer = load_tiny(recipe)
        lora, environment_factory, names = None, recipe.environment_factory(), [TASK]
    else:
        model, tokenizer, lora = model_args.load()
        environment_factory, names = ScienceWorldEnv, tasks.task
    train, held_out = (
        Dataset.from_list(
            make_tasks(split, number, seed=tasks.task_seed, task=names, simplifications=tasks.simplifications)
        )
        for split, number in (("train", tasks.train_tasks), ("dev", tasks.eval_episodes))
    )
    trainer = MISETrainer(
        args=args,
        processing_class=tokenizer,
        model=model,
        train_dataset=train,
        eval_dataset=held_out,
        peft_config=lora,
        environment_factory=environment_factory,
    )
    train_and_report(trainer, watch, f"ScienceWorld, hindsight_coef={args.hindsight_coef}")


if __name__ == "__main__":
    main()
