"""One whole iteration with MISE against the same PPO iteration without it, phase by phase.

    python -m benchmarks.update --json benchmarks/results/update.json

Defaults of `MISEConfig` (four PPO epochs, the default question, the default calibration); 32 episodes of 15 turns and
about 1,000 tokens. The learning rate is 0, so that both arms play the same episodes, token for token; half of them are
won, so that calibration takes its step in every iteration. "policy" phases of the two arms do the same work.
"""

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from benchmarks._common import SHAPES, arguments, count_flops, finish, random_model
from trl_mise import MISEConfig, MISETrainer
from trl_mise.tiny import build_tokenizer

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
    """Seconds and (in a run of its own) FLOPs of each phase of each update."""

    def __init__(self) -> None:
        self.updates: list[dict[str, float]] = []
        self._phase, self._since = "", 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.updates.append(dict.fromkeys(PHASES, 0.0))
        self._phase = ""

    def on_phase(self, phase: str, detail: str = "") -> None:
        self._book()
        self._phase, self._since = phase, time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._book()
        self._phase = ""

    def _book(self) -> None:
        if self._phase:
            self.updates[-1][self._phase] += time.perf_counter() - self._since


def make_trainer(folder: str, options: Any, *, mise: bool, clock: PhaseClock) -> MISETrainer:
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
        total_episodes=options.episodes * (options.repeats + 1),
        max_turns=options.turns,
        response_length=options.action,
        max_episode_tokens=4 * options.turns * (options.observation + options.action),
        check_environment=False,
        **({} if mise else {"hindsight_coef": 0.0}),
    )
    model = random_model(options.shape, options.vocab, options.device)
    trainer = MISETrainer(
        config,
        tokenizer,
        model,
        train_dataset=Dataset.from_list([{"seed": seed} for seed in range(options.episodes)]),
        environment_factory=lambda: FixedLengthEnv(options.turns, options.observation),
        callbacks=[],
    )
    # Before the calibration callback, which was added by the trainer: its time is counted too.
    trainer.callback_handler.callbacks.append(clock)
    return trainer


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small", choices=sorted(SHAPES))
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--micro_batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--action", type=int, default=12, help="tokens of an action")
    parser.add_argument("--observation", type=int, default=52, help="tokens of an observation")
    parser.set_defaults(repeats=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.quick:
        options.shape, options.vocab, options.episodes, options.turns, options.repeats = "tiny", 1000, 4, 3, 1
    seconds, flops, tokens = {}, {}, 0.0
    for name, mise in (("MISE", True), ("PPO", False)):
        with tempfile.TemporaryDirectory() as folder:
            clock = PhaseClock()
            trainer = make_trainer(folder, options, mise=mise, clock=clock)
            trainer.train()
            timed = clock.updates[1:]
            seconds[name] = {phase: sum(u[phase] for u in timed) / len(timed) for phase in PHASES}
            tokens = trainer.state.log_history[-1].get("env/episode_tokens", 0.0)
            if mise:
                assert any("calibration/loss" in entry for entry in trainer.state.log_history), "no calibration step"
        with tempfile.TemporaryDirectory() as folder:
            short = {**vars(options), "repeats": 0}
            counted = make_trainer(folder, type(options)(**short), mise=mise, clock=PhaseClock())
            flops[name] = count_flops(counted.train)
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
    names = ("shape", "vocab", "episodes", "micro_batch", "turns", "action", "observation", "repeats")
    settings = {**{name: getattr(options, name) for name in names}, "episode_tokens": tokens}
    return finish("update", options, rows, settings)


if __name__ == "__main__":
    main()
