"""What the trainer's tests share: a tiny language, models of one layer, a small environment, a short configuration."""

import copy
import gc
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.modeling_outputs import BaseModelOutput

from trl_mise import MISEConfig, MISETrainer
from trl_mise.ppo import PPOConfig
from trl_mise.tiny import build_tokenizer

# These models are far too small for a second thread to help, and where the cores are busy its barriers cost ten times
# more than the work itself.
torch.set_num_threads(1)

LETTERS = ("a", "b", "c", "d")
DIGITS = ("0", "1", "2", "3", "4", "5")
SERVICE_WORDS = ("say", "more", "done", ".", "judge", "step", "good", "bad", "new", "goal", "task")
PROMPT = "judge step {{ step }} {{ action }}"


def make_tokenizer(*, pad_is_eos: bool = False) -> Any:
    """Every word of this file, a chat template, eos `<|end|>`."""
    tokenizer = build_tokenizer([*SERVICE_WORDS, *LETTERS, *DIGITS])
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def llama_config(tokenizer: Any, **kwargs: Any) -> LlamaConfig:
    return LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.125,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            **kwargs,
        }
    )


def make_policy(tokenizer: Any, *, seed: int = 0, **kwargs: Any) -> LlamaForCausalLM:
    """A policy from scratch; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(tokenizer, **kwargs))


def make_classifier(tokenizer: Any, *, seed: int = 1) -> LlamaForSequenceClassification:
    """A value or reward model with one label."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(llama_config(tokenizer, num_labels=1))


class LetterEnv:
    """`turns` requests to say something; at the end, the share of actions that begin with an early letter.

    Every reward but the last is 0; `won` from one half on, so that random play both wins and loses.

    Args:
        turns (`int`): length of an episode.
        reward_scale (`float`): factor on the final reward.
    """

    def __init__(self, turns: int = 3, reward_scale: float = 1.0) -> None:
        self.turns, self.reward_scale = turns, reward_scale
        self.closed = 0

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        rng = random.Random(seed)
        self._said: list[str] = []
        return f"say {rng.choice(DIGITS)}", {"instruction": f"task {rng.choice(LETTERS)}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._said.append(action)
        valid = action[:1] in LETTERS
        if len(self._said) < self.turns:
            return "more .", 0.0, False, False, {"action_valid": valid}
        share = sum(said[:1] in LETTERS for said in self._said) / self.turns
        return "done .", self.reward_scale * share, True, False, {"action_valid": valid, "won": share >= 0.5}

    def close(self) -> None:
        self.closed += 1


class CoinEnv(LetterEnv):
    """Every second episode is won, by its seed and whatever is done; none at all where `always_lost`."""

    always_lost = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._won = bool((seed or 0) % 2) and not self.always_lost
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> Any:
        observation, _, done, truncated, info = super().step(action)
        return observation, float(done and self._won), done, truncated, {**info, "won": self._won}


def tasks(n: int = 16) -> Dataset:
    return Dataset.from_list([{"seed": seed} for seed in range(n)])


def short_options(tmp_path: Path, **overrides: Any) -> dict[str, Any]:
    """Two updates of 8 episodes of three turns."""
    return {
        "output_dir": str(tmp_path),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "num_sample_generations": 0,
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "total_episodes": 16,
        "num_ppo_epochs": 2,
        "temperature": 1.0,
        "learning_rate": 1e-2,
        "response_length": 3,
        **overrides,
    }


def make_config(tmp_path: Path, **overrides: Any) -> MISEConfig:
    options = {"max_turns": 4, "max_episode_tokens": 128, "hindsight_prompt": PROMPT, **overrides}
    return MISEConfig(**short_options(tmp_path, **options))


def make_ppo_config(tmp_path: Path, **overrides: Any) -> PPOConfig:
    return PPOConfig(**short_options(tmp_path, **overrides))


TRAINER_ARGUMENTS = (
    *("ref_model", "reward_model", "value_model", "data_collator", "eval_dataset", "optimizers", "callbacks"),
    *("peft_config", "hindsight", "generation_backend"),
)


def make_trainer(tmp_path: Path, **overrides: Any) -> MISETrainer:
    """A trainer on [`LetterEnv`]; names that are no argument of the trainer go to the configuration."""
    tokenizer = overrides.pop("tokenizer", None) or make_tokenizer()
    model = overrides.pop("model", None)
    model = make_policy(tokenizer) if model is None else model
    factory = overrides.pop("environment_factory", LetterEnv)
    dataset = overrides.pop("train_dataset") if "train_dataset" in overrides else tasks()
    given = {name: overrides.pop(name) for name in TRAINER_ARGUMENTS if name in overrides}
    return MISETrainer(
        make_config(tmp_path, **overrides),
        tokenizer,
        model,
        train_dataset=dataset,
        environment_factory=factory,
        **given,
    )


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters, by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def logs_without(log_history: Iterable[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in entry.items() if k not in names and "time/" not in k} for entry in log_history]


class WordValueModel(nn.Module):
    """A reward model that anybody can compute: the sum of the values of the tokens read so far.

    Args:
        values (`Tensor`): `(V,)` value of every token.
    """

    base_model_prefix = "model"

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.model = _RunningSum(values)
        self.score = nn.Identity()


class _RunningSum(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values: Tensor
        self.register_buffer("values", values)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> BaseModelOutput:
        hidden = (self.values[input_ids] * attention_mask).cumsum(1)[..., None]  # (B, L, 1)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=(hidden,))


def copy_of(model: nn.Module) -> Any:
    return copy.deepcopy(model)


@contextmanager
def cheap_garbage_collection() -> Iterator[None]:
    """PPOTrainer collects garbage twice per update; without this it would walk every imported library each time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
