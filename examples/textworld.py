"""An agent learns to cook in TextWorld: generated games, paid only for the eaten meal.

    pip install "trl-mise[textworld]"
    accelerate launch examples/textworld.py --output_dir runs/textworld              # the embedded tiny policy, CPU
    accelerate launch examples/textworld.py --config examples/configs/ftwp.yaml      # Qwen2.5-7B-Instruct, GPU

Every field of `MISEConfig` is a flag; `--config file.yaml` sets them from a file. Writes the trained policy,
`summary.json`, `learning_curve.png` and `trajectories.jsonl` to `--output_dir`. The tiny policy's words are those of
its games, so it is made for them anew (minutes) whenever `--game`, `--train_tasks`, `--eval_episodes` or `--task_seed`
names others; games of one room suit it. It learns its training games by heart: its success there rises
(`sampled_success_first`, `sampled_success_final`), on games that it has never seen it stays poor.
"""

from dataclasses import dataclass, field

from _common import ModelArguments, Stopwatch, load_tiny, train_and_report
from datasets import Dataset

from trl_mise import MISEConfig, MISETrainer
from trl_mise._trl import TrlParser
from trl_mise.envs.registry import ENVIRONMENTS
from trl_mise.envs.textworld import TextWorldEnv, make_tasks
from trl_mise.textworld_recipe import TextWorldRecipe

REAL_MODEL_DEFAULTS = {
    "learning_rate": 1e-5,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 32,
    "num_mini_batches": 4,
    "num_ppo_epochs": 2,
    "total_episodes": 4096,
    "max_turns": 30,
    "max_new_tokens": 24,
    "max_episode_tokens": 4096,
    "num_envs": 8,
    "temperature": 1.0,
    "kl_coef": 0.02,
    "logging_steps": 1,
    "num_sample_generations": 0,
    "report_to": "none",
    "system_prompt": ENVIRONMENTS["textworld"].system_prompt,
}


@dataclass
class GameArguments:
    """The games."""

    game: list[str] = field(
        default_factory=lambda: list(TextWorldRecipe.games),
        metadata={"help": "Names of FTWP's cooking games or of other TextWorld challenges; several take turns."},
    )
    train_tasks: int = field(
        default=TextWorldRecipe.train_tasks, metadata={"help": "Training games; each takes 3 s to generate, once."}
    )
    eval_episodes: int = field(
        default=TextWorldRecipe.eval_tasks, metadata={"help": "Held-out games for the greedy evaluations."}
    )
    task_seed: int = field(default=TextWorldRecipe.task_seed, metadata={"help": "Which games are drawn."})


def main() -> None:
    watch = Stopwatch()
    parser = TrlParser((GameArguments, ModelArguments, MISEConfig))
    given, *_ = TrlParser((ModelArguments,)).parse_args_and_config(return_remaining_strings=True)
    is_tiny = given.model_name_or_path is None
    parser.set_defaults_with_config(**(TextWorldRecipe().training_defaults() if is_tiny else REAL_MODEL_DEFAULTS))
    games, model_args, args = parser.parse_args_and_config()

    if is_tiny:
        recipe = TextWorldRecipe(
            train_tasks=games.train_tasks,
            eval_tasks=games.eval_episodes,
            task_seed=games.task_seed,
            games=tuple(games.game),
        )
        model, tokenizer = load_tiny(recipe)
        lora, environment_factory = None, recipe.environment_factory()
    else:
        model, tokenizer, lora = model_args.load()
        environment_factory = TextWorldEnv
    train, held_out = (
        Dataset.from_list(make_tasks(split, number, seed=games.task_seed, game=games.game))
        for split, number in (("train", games.train_tasks), ("valid", games.eval_episodes))
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
    train_and_report(trainer, watch, f"TextWorld, hindsight_coef={args.hindsight_coef}")


if __name__ == "__main__":
    main()
