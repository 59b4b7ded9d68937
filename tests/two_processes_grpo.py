"""What each of two processes does; run by torchrun from `test_grpo_two_processes.py`.

torchrun --standalone --nproc_per_node 2 two_processes_grpo.py FOLDER NUM_GENERATIONS
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from test_grpo import TOKENIZER, config, make
from torchrun import save_and_leave
from trainer_fakes import weights

from trl_mise import MISEGRPOTrainer

ANSWERS = ["a b .", "a . 1 2", "0 1 more", "c d . a <|end|>"]


def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Completions by prompt and place in the group: the same, however the groups are shared out."""
    said: dict[str, int] = {}
    rows, won = [], []
    for prompt in prompts:
        place = said[prompt] = said.get(prompt, -1) + 1
        rows.append(TOKENIZER(ANSWERS[(place + int(prompt[-1])) % 4])["input_ids"])
        # All the same for half of the prompts: their groups are silent.
        won.append(float(sum(map(int, rows[-1])) % 2) if int(prompt[-1]) % 2 else 0.7)
    return {
        "prompt_ids": [TOKENIZER(prompt)["input_ids"] for prompt in prompts],
        "completion_ids": rows,
        "logprobs": [[-1.0] * len(row) for row in rows],
        "won": won,
    }


def won(won: list[float], **kwargs: Any) -> list[float]:
    return won


def trainer_of(folder: Path, completions: int, num_generations: int, **overrides: Any) -> Any:
    """Three batches of 8 completions, two iterations on each; `completions` of them on each process."""
    args = config(
        folder,
        per_device_train_batch_size=completions,
        num_generations=num_generations,
        scale_rewards="none",
        steps_per_generation=1,
        num_iterations=2,
        **overrides,
    )
    return make(MISEGRPOTrainer, args, rollout_func=rollout, reward_funcs=won)


def main(folder: Path, num_generations: int) -> None:
    torch.set_num_threads(1)
    trainer = trainer_of(folder, 4, num_generations, ddp_backend="gloo")
    trainer.train()
    left = {
        "weights": weights(trainer.policy),
        "judge": trainer.hindsight.state_dict(),
        "world": dist.get_world_size(),
    }
    save_and_leave(left, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
