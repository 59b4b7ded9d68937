"""A one-turn environment with a terminal reward agrees with PPOTrainer: same weights (to 1e-5) after four updates.

Both sides are given the same responses, so that what is compared is everything after the sampling: log-probabilities,
values, KL, reward placement, GAE, whitening, losses, optimizer, schedule.

The responses have full length and no stop token, because there PPOTrainer means what it says. After a response that
stops early it pays the reward *one token after the end*, on a padding token, which it also trains a value at; we pay
it on the last sampled token. And it averages over micro-batches whatever their number of tokens, and ignores
`max_grad_norm`: hence one micro-batch per optimizer step and no clipping.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trainer_fakes import (
    DIGITS,
    LETTERS,
    WordValueModel,
    cheap_garbage_collection,
    copy_of,
    largest_difference,
    make_classifier,
    make_config,
    make_policy,
    make_ppo_config,
    make_tokenizer,
    weights,
)

import trl_mise.targets
from trl_mise import MISETrainer
from trl_mise.chat import ChatFormat
from trl_mise.ppo import PPOTrainer
from trl_mise.rollout import Generate

ppo_trainer = pytest.importorskip("trl.experimental.ppo.ppo_trainer", reason="this TRL has no PPOTrainer")

UPDATES, BATCH, LENGTH = 4, 8, 5
OPTIONS = {
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 1,
    "num_ppo_epochs": 3,
    "total_episodes": UPDATES * BATCH,
    "response_length": LENGTH,
    "max_grad_norm": None,
    "learning_rate": 1e-3,
    "temperature": 0.9,
    "kl_coef": 0.2,
    "vf_coef": 0.5,
    "gamma": 0.95,
    "lam": 0.9,
}


class OneTurnEnv:
    """Asks once and pays for the digits of the answer, what [`digit_values`] says of each."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        return question(int(seed or 0)), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        reward = sum(float(word) / 10 for word in action.split() if word in DIGITS)
        return "done .", reward, True, False, {}

    def close(self) -> None: ...


def question(seed: int) -> str:
    """Questions of different lengths: PPOTrainer pads them on the left."""
    return " ".join(["say", *(LETTERS * 2)[: 1 + seed % 4], LETTERS[seed // 4]])


def digit_values(tokenizer: Any) -> Tensor:
    values = torch.zeros(len(tokenizer))
    for digit in DIGITS:
        values[tokenizer.convert_tokens_to_ids(digit)] = float(digit) / 10
    return values


class Script:
    """The responses: random digits that depend on the prompt and on how often it was asked."""

    def __init__(self, tokenizer: Any) -> None:
        self.digits = tokenizer.convert_tokens_to_ids(list(DIGITS))
        self.asked: dict[tuple[int, ...], int] = {}

    def __call__(self, prompt: Sequence[int]) -> list[int]:
        key = tuple(prompt)
        self.asked[key] = self.asked.get(key, 0) + 1
        return random.Random(f"{key} {self.asked[key]}").choices(self.digits, k=LENGTH)


class ScriptBackend:
    """A [`GenerationBackend`] that plays the script."""

    def __init__(self, script: Script) -> None:
        self.script = script

    @contextmanager
    def session(self, policy: Any, sampling: Any) -> Iterator[Generate]:
        yield lambda contexts: [self.script(context) for context in contexts]


def models(tokenizer: Any) -> dict[str, Any]:
    policy = make_policy(tokenizer, num_hidden_layers=2)
    value_model, reference = make_classifier(tokenizer), copy_of(policy)
    with torch.no_grad():  # a reference other than the policy, so that the KL matters from the start
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return {
        "model": policy,
        "ref_model": reference,
        "value_model": value_model,
        "reward_model": WordValueModel(digit_values(tokenizer)),
    }


def ppo_weights(folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> dict[str, Tensor]:
    tokenizer = make_tokenizer()
    script, chat = Script(tokenizer), ChatFormat(tokenizer)

    def scripted(model: Any, queries: Tensor, size: int, pad: int, config: Any) -> tuple[Tensor, Tensor]:
        responses = torch.tensor([script(row[row != pad].tolist()) for row in queries])
        rows = torch.cat([queries, responses], 1)
        logits = ppo_trainer.forward(model, rows, pad).logits[:, queries.shape[1] - 1 : -1]
        return rows, logits / config.temperature

    monkeypatch.setattr(ppo_trainer, "batch_generation", scripted)
    rows = Dataset.from_list([{"input_ids": chat.opening(question(seed))} for seed in range(BATCH)])
    trainer = PPOTrainer(make_ppo_config(folder, **options), tokenizer, train_dataset=rows, **models(tokenizer))
    with cheap_garbage_collection():
        trainer.train()
    return both_weights(trainer)


def mise_weights(folder: Path, options: dict[str, Any]) -> dict[str, Tensor]:
    tokenizer = make_tokenizer()
    script = Script(tokenizer)
    config = make_config(folder, gae_level="token", kl_placement="reward", **options)
    trainer = MISETrainer(
        config,
        tokenizer,
        train_dataset=Dataset.from_list([{"seed": seed} for seed in range(BATCH)]),
        environment_factory=OneTurnEnv,
        hindsight=False,
        generation_backend=ScriptBackend(script),
        **models(tokenizer),
    )
    trainer.train()
    return both_weights(trainer)


def both_weights(trainer: Any) -> dict[str, Tensor]:
    policy, value_model = weights(trainer.policy_model), weights(trainer.value_model)
    return {f"policy.{name}": tensor for name, tensor in policy.items()} | {
        f"value.{name}": tensor for name, tensor in value_model.items()
    }


def start_weights() -> dict[str, Tensor]:
    tokenizer = make_tokenizer()
    trained = models(tokenizer)
    policy, value_model = weights(trained["model"]), weights(trained["value_model"])
    return {f"policy.{name}": tensor for name, tensor in policy.items()} | {
        f"value.{name}": tensor for name, tensor in value_model.items()
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"kl_estimator": "k3", "whiten_rewards": True, "gamma": 1.0, "cliprange_value": 0.05}],
    ids=["plain", "k3 and whitened rewards"],
)
def test_four_updates_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    options = {**OPTIONS, **options}
    theirs = ppo_weights(tmp_path, monkeypatch, options)
    ours = mise_weights(tmp_path, options)
    assert largest_difference(ours, theirs) < 1e-5
    assert largest_difference(start_weights(), theirs) > 1e-3  # and it is not that nothing moved


def negated_advantages(monkeypatch: pytest.MonkeyPatch) -> None:
    original = trl_mise.targets.whiten

    def negated(*args: Any, **kwargs: Any) -> Tensor:
        whitened = original(*args, **kwargs)
        return whitened if kwargs.get("shift_mean") is False else -whitened

    monkeypatch.setattr(trl_mise.targets, "whiten", negated)


def no_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    original = trl_mise.targets.per_turn
    monkeypatch.setattr(trl_mise.targets, "per_turn", lambda *args: 0 * original(*args))


def early_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the turn's first token instead of its last."""
    original = trl_mise.targets.place_rewards
    monkeypatch.setattr(trl_mise.targets, "place_rewards", lambda *args: original(*args).flip(1))


@pytest.mark.parametrize("mutate", [negated_advantages, no_rewards, early_rewards])
def test_mutants_do_not_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutate: Any) -> None:
    theirs = ppo_weights(tmp_path, monkeypatch, OPTIONS)
    mutate(monkeypatch)
    ours = mise_weights(tmp_path, OPTIONS)
    assert largest_difference(ours, theirs) > 1e-4
