"""Does a long run grow or slow down? The kitchen for many updates in one process: memory and time per update.

python -m benchmarks.soak --json benchmarks/results/soak.json     # 2,000 updates, about a quarter of an hour

Processor time, not the clock, so that a neighbour's load does not count; memory is what the system says is resident.
"""

import resource
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks._common import arguments, finish
from benchmarks.learning.runner import make_trainer
from trl_mise import MISEConfig
from trl_mise.envs import kitchen
from trl_mise.judges import judge_for
from trl_mise.recipes import KitchenBase, KitchenRecipe, kitchen_recipe
from trl_mise.tiny import cached


class Watch(TrainerCallback):
    """Resident bytes and processor seconds at the end of every update."""

    def __init__(self) -> None:
        self.resident: list[int] = []
        self.seconds: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with open("/proc/self/statm", encoding="ascii") as file:
            self.resident.append(int(file.read().split()[1]) * resource.getpagesize())
        self.seconds.append(time.process_time())


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--warm_up", type=int, default=200, help="updates that do not count: caches fill")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # matrices this small are slower with two
    recipe = kitchen_recipe("near_one_percent")
    if options.quick:
        options.updates, options.warm_up = 8, 4
        recipe = replace(recipe, steps=1, base=KitchenBase(short_steps=1, full_steps=1))
    watch = train(recipe, options.updates)
    per_update = [later - earlier for earlier, later in zip(watch.seconds, watch.seconds[1:], strict=False)]
    window = min(options.warm_up, (options.updates - options.warm_up) // 2)
    parts = {
        "after warm-up": slice(options.warm_up - 1, options.warm_up - 1 + window),
        "middle": slice(options.updates // 2, options.updates // 2 + window),
        "end": slice(-window, None),
    }
    rows = [
        {
            "updates": name,
            "resident MiB": statistics.median(watch.resident[part]) / 2**20,
            "processor ms": 1000 * statistics.median(per_update[part]),
        }
        for name, part in parts.items()
    ]
    for row in rows:
        row["memory /"] = row["resident MiB"] / rows[0]["resident MiB"]
        row["time /"] = row["processor ms"] / rows[0]["processor ms"]
    return finish("soak", options, rows, {"updates": options.updates, "warm_up": options.warm_up})


def train(recipe: KitchenRecipe, updates: int) -> Watch:
    watch = Watch()
    model, tokenizer = cached(recipe)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            **recipe.training_defaults(),
            # Episodes and checkpoints are written as in a real run.
            **{"output_dir": folder, "total_episodes": 32 * updates, "log_trajectories": True},
            **{"save_strategy": "steps", "save_steps": 100, "save_total_limit": 2, "check_environment": False},
        }

        def judge(args: MISEConfig) -> Any:
            return judge_for("model", tokenizer, args)

        tasks = kitchen.make_tasks("train", 4096)
        make_trainer(model, tokenizer, recipe, tasks, judge=judge, callbacks=[watch], **settings).train()
    return watch


if __name__ == "__main__":
    main()
