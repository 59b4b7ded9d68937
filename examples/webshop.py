"""An agent learns a web shop from a reward that comes only with the purchase.

    accelerate launch examples/webshop.py --output_dir runs/webshop                  # the embedded tiny policy, CPU
    accelerate launch examples/webshop.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --use_peft \
        --output_dir runs/webshop-qwen                                               # an instruct model, GPU

Every field of `MISEConfig` is a flag; `--config file.yaml` sets them from a file. Writes the trained policy,
`summary.json`, `learning_curve.png` and `trajectories.jsonl` to `--output_dir`.
"""

from dataclasses import dataclass, field
from functools import partial

from _common import ModelArguments, Stopwatch, load_tiny, train_and_report
from datasets import Dataset

from trl_mise import MISEConfig, MISETrainer
from trl_mise._trl import TrlParser
from trl_mise.envs.registry import ENVIRONMENTS
from trl_mise.envs.webshop import WebShopEnv, make_tasks
from trl_mise.webshop_recipe import WebShopRecipe

REAL_MODEL_DEFAULTS = {
    "learning_rate": 1e-5,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 16,
    "num_mini_batches": 4,
    "num_ppo_epochs": 2,
    "total_episodes": 4096,
    "max_turns": 12,
    "max_new_tokens": 32,
    "max_episode_tokens": 4096,
    "temperature": 1.0,
    "kl_coef": 0.02,
    "logging_steps": 1,
    "num_sample_generations": 0,
    "report_to": "none",
    "system_prompt": ENVIRONMENTS["webshop"].system_prompt,
}


@dataclass
class ShopArguments:
    """The tasks."""

    eval_episodes: int = field(default=104, metadata={"help": "Held-out goals for the greedy evaluations."})
    train_tasks: int = field(default=2048, metadata={"help": "Training tasks (goals repeat once all were used)."})
    task_seed: int = field(default=0, metadata={"help": "Which goals are drawn."})


def main() -> None:
    watch = Stopwatch()
    recipe = WebShopRecipe()
    parser = TrlParser((ShopArguments, ModelArguments, MISEConfig))
    given, *_ = TrlParser((ModelArguments,)).parse_args_and_config(return_remaining_strings=True)
    is_tiny = given.model_name_or_path is None
    parser.set_defaults_with_config(**(recipe.training_defaults() if is_tiny else REAL_MODEL_DEFAULTS))
    shop, model_args, args = parser.parse_args_and_config()

    if is_tiny:
        model, tokenizer = load_tiny(recipe)
        lora, env_kwargs = None, recipe.env_kwargs
    else:
        model, tokenizer, lora = model_args.load()
        env_kwargs = {}
    trainer = MISETrainer(
        args=args,
        processing_class=tokenizer,
        model=model,
        train_dataset=Dataset.from_list(make_tasks("train", shop.train_tasks, seed=shop.task_seed, **env_kwargs)),
        eval_dataset=Dataset.from_list(make_tasks("test", shop.eval_episodes, seed=shop.task_seed, **env_kwargs)),
        peft_config=lora,
        environment_factory=partial(WebShopEnv, **env_kwargs),
    )
    train_and_report(trainer, watch, f"web shop, hindsight_coef={args.hindsight_coef}")


if __name__ == "__main__":
    main()
