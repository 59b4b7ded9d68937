"""Without an environment and without hindsight, MISETrainer *is* PPOTrainer: same weights, same logs, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from trainer_fakes import (
    cheap_garbage_collection,
    largest_difference,
    logs_without,
    make_classifier,
    make_config,
    make_policy,
    make_ppo_config,
    make_tokenizer,
    weights,
)

from trl_mise import MISETrainer
from trl_mise.ppo import TRL_HAS_PPO, PPOTrainer

pytestmark = pytest.mark.skipif(not TRL_HAS_PPO, reason="this TRL has no PPOTrainer to compare with")

# More than one mini-batch and micro-batch, and two passes over the data: every random stream of PPOTrainer is used.
OPTIONS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_mini_batches": 2,
    "total_episodes": 32,
    "stop_token": "eos",
    "missing_eos_penalty": 1.0,
}


def run(trainer_class: Any, make_args: Callable[..., Any], folder: Path, **kwargs: Any) -> Any:
    tokenizer = make_tokenizer()
    args = make_args(folder, **OPTIONS, **kwargs.pop("options", {}))
    rows = Dataset.from_list([{"input_ids": [7 + i % 5] * (1 + i % 3)} for i in range(16)])
    models = {
        "model": make_policy(tokenizer),
        "ref_model": None,
        "reward_model": make_classifier(tokenizer, seed=2),
        "value_model": make_classifier(tokenizer, seed=1),
    }
    torch.manual_seed(3)
    np.random.seed(3)  # PPOTrainer shuffles mini-batches with numpy's global state
    trainer = trainer_class(args=args, processing_class=tokenizer, train_dataset=rows, **models, **kwargs)
    with cheap_garbage_collection():
        trainer.train()
    return trainer


def assert_identical(trainer: Any, reference: Any) -> None:
    for name in ("policy_model", "value_model"):
        ours, theirs = weights(getattr(trainer, name)), weights(getattr(reference, name))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert len(reference.state.log_history) == 4
    # `eps` is episodes per second.
    assert logs_without(trainer.state.log_history, "eps") == logs_without(reference.state.log_history, "eps")


@pytest.mark.parametrize("way", ["MISEConfig with hindsight_coef=0", "PPOConfig with hindsight=False"])
def test_it_is_ppo_trainer_bit_for_bit(tmp_path: Path, way: str) -> None:
    reference = run(PPOTrainer, make_ppo_config, tmp_path / "reference")
    start = weights(make_policy(make_tokenizer()))
    assert largest_difference(weights(reference.policy_model), start) > 1e-3  # it trained
    if way.startswith("MISE"):
        trainer = run(MISETrainer, make_config, tmp_path / "ours", options={"hindsight_coef": 0})
    else:
        trainer = run(MISETrainer, make_ppo_config, tmp_path / "ours", hindsight=False)
    assert_identical(trainer, reference)


def test_saving_is_ppo_trainers_too(tmp_path: Path) -> None:
    trainer = run(MISETrainer, make_ppo_config, tmp_path, hindsight=False)
    trainer.save_model(str(tmp_path / "saved"))
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert "model.safetensors" in names
    assert not {"value_model", "value_head.safetensors"} & names


def test_hindsight_on_is_something_else(tmp_path: Path) -> None:
    """The control: the comparison above would notice."""
    reference = run(PPOTrainer, make_ppo_config, tmp_path / "reference")
    trainer = run(MISETrainer, make_config, tmp_path / "ours")
    assert largest_difference(weights(trainer.policy_model), weights(reference.policy_model)) > 1e-4
