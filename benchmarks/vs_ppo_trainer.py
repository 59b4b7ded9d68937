"""TRL's PPOTrainer against our PPO on the same single-turn problem: seconds per update and peak memory.

    python -m benchmarks.vs_ppo_trainer --json benchmarks/results/vs_ppo_trainer.json

Same random policy with a 150k vocabulary, same prompts, reward model, response length, batch, epochs, and the same
number of optimizer steps (one micro-batch per epoch: with more mini-batches PPOTrainer takes no more steps, we do).
Without an environment and without hindsight a MISETrainer *is* PPOTrainer and runs TRL's own loop; so hindsight is
switched off after construction here, which leaves our loop and nothing of MISE: what is compared is PPO itself. One
row has a value model of its own, as TRL demands, the other the value head on the policy's backbone, our default.
The peak is of everything that the run allocates: weights, gradients, optimizer, activations.
"""

import itertools
import tempfile
import time
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForSequenceClassification, TrainerCallback

from benchmarks._common import SHAPES, arguments, count_flops, finish, peak_bytes, random_ids, random_model
from trl_mise import MISEConfig, MISETrainer
from trl_mise.ppo import TRL_HAS_PPO, PPOConfig, PPOTrainer
from trl_mise.tiny import build_tokenizer


class UpdateClock(TrainerCallback):
    """Seconds between the ends of two updates."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        return median(after - before for before, after in itertools.pairwise(self.ends))


def classifier(options: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    sizes = SHAPES[options.shape]
    return Qwen2ForSequenceClassification(
        Qwen2Config(
            vocab_size=options.vocab,
            num_labels=1,
            intermediate_size=4 * sizes["hidden_size"],
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
            **sizes,
        )
    ).to(options.device)


def make_trainer(kind: str, options: Any, folder: str, updates: int, clock: UpdateClock) -> Any:
    tokenizer = build_tokenizer(["good", "bad", *(f"w{i}" for i in range(100))])
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": random_ids(options.prompt, 100, generator)} for _ in range(options.batch)]
    config_class = PPOConfig if kind == "TRL" else MISEConfig
    config = config_class(
        output_dir=folder,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=options.device == "cpu",
        bf16=False,
        num_sample_generations=0,
        learning_rate=1e-6,
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=4,
        gradient_checkpointing=False,
        total_episodes=options.batch * updates,
        response_length=options.response,
        stop_token=None,
        **({} if kind == "TRL" else {"hindsight_prompt": "{{ step }}", "log_trajectories": False}),
    )
    policy = random_model(options.shape, options.vocab, options.device)
    policy.config.pad_token_id = tokenizer.pad_token_id
    own_value_model = kind != "ours, value head"
    trainer = (PPOTrainer if kind == "TRL" else MISETrainer)(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=classifier(options, 1),
        train_dataset=Dataset.from_list(rows),
        value_model=classifier(options, 2) if own_value_model else None,
        callbacks=[clock],
    )
    if kind != "TRL":
        trainer.hindsight = None
    return trainer


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--shape", default="tiny", choices=sorted(SHAPES))
    parser.add_argument("--vocab", type=int, default=150_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--response", type=int, default=48)
    options = parser.parse_args(argv)
    if not TRL_HAS_PPO:
        parser.error('this TRL has no PPOTrainer to compare with; run: pip install "trl<1.13"')
    torch.set_num_threads(options.threads)
    if options.quick:
        options.vocab, options.response, options.repeats = 2000, 8, 1
    kinds = ("TRL", "ours, value model", "ours, value head")
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(2 if not options.quick else 1):  # in turns, so that a slow minute hits all of them
        for kind in kinds:
            clock = UpdateClock()
            run(kind, options, options.repeats + 1, clock)
            seconds[kind].append(clock.seconds)
    rows = []
    for kind in kinds:
        peak = peak_bytes(lambda kind=kind: run(kind, options, 1, UpdateClock()), options.device)  # type: ignore[misc]
        flops = count_flops(lambda kind=kind: run(kind, options, 1, UpdateClock()))  # type: ignore[misc]
        rows.append({"": kind, "updates/s": 1 / min(seconds[kind]), "peak MiB": peak / 2**20, "GFLOP": flops / 1e9})
    for row in rows:
        row["speed / TRL's"] = row["updates/s"] / rows[0]["updates/s"]
        row["memory / TRL's"] = row["peak MiB"] / rows[0]["peak MiB"]
    names = ("shape", "vocab", "batch", "prompt", "response", "repeats")
    return finish("vs_ppo_trainer", options, rows, {name: getattr(options, name) for name in names})


def run(kind: str, options: Any, updates: int, clock: UpdateClock) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(kind, options, folder, updates, clock).train()


if __name__ == "__main__":
    main()
