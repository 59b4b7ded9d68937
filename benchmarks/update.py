"""One whole iteration with MISE against the same PPO iteration without it, phase by phase.

    python -m benchmarks.update --json benchmarks/results/update.json

Defaults of `MISEConfig` (four PPO epochs, the default question, the default calibration); 32 episodes of 15 turns and
about 1,000 tokens. The learning rate is 0, so that both arms play the same episodes, token for token; half of them are
won, so that calibration takes its step in every iteration. Rollout and update do the same work in both arms.

On a GPU, with a model of 7B parameters in bfloat16 and an adapter:

    python -m benchmarks.update --shape qwen2.5-7b --vocab 152064 --dtype bfloat16 --lora --json FILE
"""

import tempfile
import time
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from benchmarks._common import SHAPES, arguments, count_flops, finish, random_model
from trl_mise import MISEConfig, MISETrainer
from trl_mise.tiny import build_tokenizer

ARMS = ("MISE", "PPO")
PHASES = ("rollout", "evaluate", "scoring", "update", "calibrate", "finish")


class FixedLengthEnv:
    """Answers every action with `words` words; ends after `turns`; every other task is won."""

    def __init__(self, turns: int, words: int) -> None:
        self.turns, self.words = turns, words

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self.seed, self.step_number = int(seed or 0), 0
        return self._text(), {"instruction": "w1 w2 w3 w4 w5 w6 w7 w8"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        ended = self.step_number == self.turns
        won = ended and self.seed % 2 == 0
        return self._text(), float(won), ended, False, {"won": won} if ended else {}

    def _text(self) -> str:
        first = 1 + 37 * (self.seed + 1) * (self.step_number + 1)
        return " ".join(f"w{(first + 11 * i) % 900}" for i in range(self.words))

    def close(self) -> None: ...


class PhaseClock(TrainerCallback):
    """Seconds of each phase of each update."""

    def __init__(self) -> None:
        self.updates: list[dict[str, float]] = []
        self.episode_tokens = 0.0
        self._phase, self._since = "", 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.updates.append(dict.fromkeys(PHASES, 0.0))
        self._phase = ""

    def on_phase(self, phase: str, detail: str = "") -> None:
        self._book()
        self._phase, self._since = phase, time.perf_counter()

    def on_step_end(self, *args: Any, update: Any, **kwargs: Any) -> None:
        self._book()
        self._phase = ""
        self.episode_tokens = sum(len(t.token_ids) for t in update.trajectories) / len(update.trajectories)

    def _book(self) -> None:
        if self._phase:
            self.updates[-1][self._phase] += time.perf_counter() - self._since


def make_trainer(folder: str, options: Any, updates: int, *, mise: bool, clock: PhaseClock) -> MISETrainer:
    tokenizer = build_tokenizer(["good", "bad", *(f"w{i}" for i in range(options.vocab - 100))])
    config = MISEConfig(
        output_dir=folder,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        log_trajectories=False,
        use_cpu=options.device == "cpu",
        num_sample_generations=0,
        learning_rate=0.0,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=options.episodes // options.micro_batch,
        total_episodes=options.episodes * updates,
        max_turns=options.turns,
        response_length=options.action,
        max_episode_tokens=4 * options.turns * (options.observation + options.action),
        check_environment=False,
        bf16=options.dtype == "bfloat16",
        **({} if mise else {"hindsight_coef": 0.0}),
    )
    model = random_model(options.shape, options.vocab, options.device, getattr(torch, options.dtype))
    trainer = MISETrainer(
        config,
        tokenizer,
        model,
        train_dataset=Dataset.from_list([{"seed": seed} for seed in range(options.episodes)]),
        environment_factory=lambda: FixedLengthEnv(options.turns, options.observation),
        callbacks=[],
        peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM") if options.lora else None,
    )
    # Before the calibration callback, which was added by the trainer: its time is counted too.
    trainer.callback_handler.callbacks.append(clock)
    return trainer


def run(options: Any, arm: str, updates: int) -> PhaseClock:
    """Trains for some updates; the first also verifies the scoring method, once for a model."""
    clock = PhaseClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, options, updates, mise=arm == "MISE", clock=clock)
        trainer.train()
    calibrated = any("calibration/loss" in entry for entry in trainer.state.log_history)
    assert calibrated == (arm == "MISE"), "calibration did not take its step"
    return clock


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small", choices=sorted(SHAPES))
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--micro_batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--action", type=int, default=12, help="tokens of an action")
    parser.add_argument("--observation", type=int, default=52, help="tokens of an observation")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--lora", action="store_true", help="train an adapter")
    parser.set_defaults(repeats=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.quick:
        options.shape, options.vocab, options.episodes, options.turns, options.repeats = "tiny", 1000, 4, 3, 1
    clocks: dict[str, list[PhaseClock]] = {name: [] for name in ARMS}
    for _ in range(options.repeats):  # the arms take turns, so that a slow minute of the machine hits both
        for name in ARMS:
            clocks[name].append(run(options, name, updates=2))
    seconds = {
        name: {phase: median(clock.updates[1][phase] for clock in taken) for phase in PHASES}
        for name, taken in clocks.items()
    }
    flops = {name: count_flops(lambda name=name: run(options, name, updates=1)) for name in ARMS}  # type: ignore[misc]
    tokens = clocks["MISE"][0].episode_tokens
    rows = [
        {"phase": p, "MISE s": seconds["MISE"][p], "PPO s": seconds["PPO"][p]}
        for p in PHASES
        if seconds["MISE"][p] + seconds["PPO"][p] > 0
    ]
    total = {name: sum(values.values()) for name, values in seconds.items()}
    rows.append({"phase": "whole iteration", "MISE s": total["MISE"], "PPO s": total["PPO"]})
    rows.append({"phase": "TFLOP", "MISE s": flops["MISE"] / 1e12, "PPO s": flops["PPO"] / 1e12})
    for row in rows:
        row["MISE / PPO"] = row["MISE s"] / row["PPO s"] if row["PPO s"] else None
    names = ("shape", "vocab", "dtype", "lora", "episodes", "micro_batch", "turns", "action", "observation", "repeats")
    settings = {**{name: getattr(options, name) for name in names}, "episode_tokens": tokens}
    return finish("update", options, rows, settings)


if __name__ == "__main__":
    main()
