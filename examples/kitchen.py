"""The kitchen order desk: eight irrevocable choices, paid only if all of them were right.

    accelerate launch examples/kitchen.py --output_dir runs/kitchen                       # MISE
    accelerate launch examples/kitchen.py --output_dir runs/sparse --hindsight_coef 0     # the same PPO without it
    accelerate launch examples/kitchen.py --output_dir runs/random --judge random         # controls: must not learn
    accelerate launch examples/kitchen.py --output_dir runs/flipped --judge flipped

`--warm_start hard` (default) starts where practically no sampled episode succeeds, `near_one_percent` where sparse PPO
can learn too; `--biased True` warm-starts a judge that praises one wrong value of every station.
"""

from dataclasses import dataclass, field
from typing import Literal

from _common import Stopwatch, load_tiny, train_and_report
from datasets import Dataset

from trl_mise import MISEConfig, MISETrainer
from trl_mise._trl import TrlParser
from trl_mise.envs.kitchen import make_tasks
from trl_mise.judges import judge_for
from trl_mise.recipes import kitchen_recipe


@dataclass
class KitchenArguments:
    """The experiment."""

    warm_start: Literal["hard", "near_one_percent"] = field(
        default="hard", metadata={"help": "How well the demonstrations were played."}
    )
    biased: bool = field(default=False, metadata={"help": "Warm-start a systematically biased judge."})
    judge: Literal["model", "flipped", "random"] = field(default="model", metadata={"help": "Who judges the steps."})
    eval_episodes: int = field(default=128, metadata={"help": "Held-out orders for the greedy evaluations."})
    train_tasks: int = field(default=4096, metadata={"help": "Training orders."})


def main() -> None:
    watch = Stopwatch()
    parser = TrlParser((KitchenArguments, MISEConfig))
    parser.set_defaults_with_config(**kitchen_recipe("hard").training_defaults())
    kitchen, args = parser.parse_args_and_config()
    recipe = kitchen_recipe(kitchen.warm_start, biased=kitchen.biased, seed=args.seed)
    model, tokenizer = load_tiny(recipe)
    trainer = MISETrainer(
        args=args,
        processing_class=tokenizer,
        model=model,
        train_dataset=Dataset.from_list(make_tasks("train", kitchen.train_tasks, seed=args.seed)),
        eval_dataset=Dataset.from_list(make_tasks("test", kitchen.eval_episodes)),
        environment_factory=recipe.environment_factory(),
        hindsight=judge_for(kitchen.judge, tokenizer, args),
    )
    train_and_report(trainer, watch, f"kitchen, {kitchen.warm_start}, judge: {kitchen.judge}")


if __name__ == "__main__":
    main()
