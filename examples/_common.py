"""What the examples share: models from the hub with LoRA, progress of a warm start, summary and learning curve."""

import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

import _paths  # noqa: F401
import torch
from tqdm.auto import tqdm

from trl_mise.report import write_report
from trl_mise.tiny import cached


@dataclass
class ModelArguments:
    """Which policy is trained."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Instruct model from the hub or a folder; the embedded tiny policy if not given."},
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter."})
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: the base in 4 bits (nf4); with --use_peft."})
    load_in_8bit: bool = field(default=False, metadata={"help": "The base in 8 bits; with --use_peft."})
    dtype: str = field(default="auto", metadata={"help": "Data type of the loaded weights: auto, float32, bfloat16."})

    def load(self) -> tuple[Any, Any, Any]:
        """The instruct model, its tokenizer, and the LoRA configuration or None."""
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if (self.load_in_4bit or self.load_in_8bit) and not self.use_peft:
            raise SystemExit("--load_in_4bit and --load_in_8bit: a quantised base cannot be trained; add --use_peft")
        tokenizer = AutoTokenizer.from_pretrained(self.model_name_or_path)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(self.model_name_or_path, dtype=self.dtype, **self._quantisation())
        lora = LoraConfig(
            r=self.lora_r, lora_alpha=self.lora_alpha, task_type="CAUSAL_LM", target_modules="all-linear"
        )
        return model, tokenizer, lora if self.use_peft else None

    def _quantisation(self) -> dict[str, Any]:
        """Where each process's copy goes, and in how many bits."""
        if not (self.load_in_4bit or self.load_in_8bit):
            return {}
        from accelerate import PartialState
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=self.load_in_4bit,
            load_in_8bit=self.load_in_8bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        return {"quantization_config": config, "device_map": {"": PartialState().device}}


def load_tiny(recipe: Any) -> tuple[Any, Any]:
    """The recipe's (model, tokenizer), warm-started with a progress bar or loaded from the cache."""
    # For matrices this small, handing work to a second thread costs more than it saves, much more on a busy machine.
    torch.set_num_threads(1)
    return cached(recipe, progress=WarmStartProgress())


class WarmStartProgress:
    """A progress bar for `trl_mise.tiny.cached`; appears only if there is something to do."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, name: str, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = tqdm(total=total, dynamic_ncols=True)
        self.bar.set_description(f"warm start ({name})", refresh=False)
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.bar.close()


def success_curve(log_history: list[dict[str, Any]]) -> list[float]:
    """Sampled success of every logged update."""
    return [entry["env/success"] for entry in log_history if "env/success" in entry]


def train_and_report(trainer: Any, watch: "Stopwatch", title: str) -> None:
    """Greedy evaluation, training, greedy evaluation; policy, curve and summary go to `output_dir`."""
    before = trainer.evaluate()
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    after = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        _report(trainer, before, after, watch, title)


def _report(trainer: Any, before: dict[str, float], after: dict[str, float], watch: "Stopwatch", title: str) -> None:
    args, curve = trainer.args, success_curve(trainer.state.log_history)
    plot_learning_curve(trainer, args.output_dir, title)
    write_summary(
        args.output_dir,
        success_before=before["eval_success"],
        success_after=after["eval_success"],
        return_before=before["eval_return"],
        return_after=after["eval_return"],
        sampled_success_first=_mean(curve[:3]),
        sampled_success_final=_mean(curve[-10:]),
        sampled_success_auc=_mean(curve),
        eval_episodes=int(after["eval_episodes"]),
        train_episodes=trainer.state.episode,
        wall_s=watch.seconds,
        hindsight_coef=args.hindsight_coef,
        seed=args.seed,
    )
    print(f"{write_report(args.output_dir)}: open it in a browser")


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None  # nothing was logged


def write_summary(output_dir: str, **values: Any) -> dict[str, Any]:
    """Writes `<output_dir>/summary.json` and prints it."""
    os.makedirs(output_dir, exist_ok=True)
    with open(os.path.join(output_dir, "summary.json"), "w", encoding="utf-8") as file:
        json.dump(values, file, indent=2)
        file.write("\n")
    print(json.dumps(values, indent=2))
    return values


def plot_learning_curve(trainer: Any, output_dir: str, title: str) -> None:
    """Writes `<output_dir>/learning_curve.png`: success of training episodes and of greedy evaluations."""
    try:
        import matplotlib
    except ImportError:
        print('learning_curve.png needs matplotlib: pip install "trl-mise[examples]"')
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    history, per_update = trainer.state.log_history, trainer.args.batch_size
    train = [(e["step"] * per_update, e["env/success"]) for e in history if "env/success" in e]
    evals = [(e["step"] * per_update, e["eval_success"]) for e in history if "eval_success" in e]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    if train:
        episodes, values = zip(*train, strict=True)
        left.plot(episodes, values, color="#9bb7d4", linewidth=1, label="training episodes (sampled)")
        window = max(1, len(values) // 12)
        smooth = [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
        left.plot(episodes, smooth, color="#1f5a99", linewidth=2, label="the same, moving average")
    if evals:
        left.plot(*zip(*evals, strict=True), "o-", color="#c8501e", label="held-out tasks (greedy)")
    left.set(title="success", xlabel="episodes", ylim=(-0.02, 1.02))
    left.legend(frameon=False, fontsize=8)
    shown = {
        "hindsight/auroc": "AUROC of episode score vs outcome",
        "hindsight/within_episode_spread": "spread of scores within an episode",
        "mise/mutual_information": "I(A;E), nats",
    }
    for key, label in shown.items():
        points = [(e["step"] * per_update, e[key]) for e in history if key in e]
        if points:
            right.plot(*zip(*points, strict=True), linewidth=1.2, label=label)
    right.set(title="the judge", xlabel="episodes", ylim=(-0.02, 1.02))
    if right.lines:
        right.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(os.path.join(output_dir, "learning_curve.png"), dpi=110)
    plt.close(figure)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.time()

    @property
    def seconds(self) -> float:
        return round(time.time() - self._start, 1)
