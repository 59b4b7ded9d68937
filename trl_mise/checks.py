"""Arguments that PPOTrainer would only stumble over later, or never."""

from typing import Any

from datasets import Dataset

from .config import MISEConfig


def check_arguments(
    config: MISEConfig,
    processing_class: Any,
    train_dataset: Dataset | None,
    environment_factory: Any,
    reward_model: Any,
) -> None:
    """Raises a `ValueError` that names the argument and the fix."""
    if train_dataset is None:
        raise ValueError("train_dataset is required: one row per task (environment) or per prompt")
    # Of this process alone; the number of processes is known later.
    check_batch(len(train_dataset), config.per_device_train_batch_size * config.gradient_accumulation_steps)
    if getattr(processing_class, "pad_token_id", None) is None:
        raise ValueError(
            "processing_class has no pad token; set one, e.g. "
            "`processing_class.pad_token = processing_class.eos_token`"
        )
    if environment_factory is not None and not callable(environment_factory):
        raise ValueError(
            "environment_factory must be a callable without arguments that makes an environment, got an object of "
            f"type {type(environment_factory).__name__}; e.g. environment_factory=lambda: MyEnv()"
        )
    if environment_factory is None and reward_model is None:
        raise ValueError(
            "reward_model is required without an environment: its score is the sparse return; pass one, or "
            "environment_factory="
        )
    if environment_factory is None and config.history_window is not None:
        raise ValueError(
            "history_window needs an environment: a single response has no turns; leave it out, or pass "
            "environment_factory="
        )
    if config.temperature <= 0:
        raise ValueError(f"temperature must be positive for training, got {config.temperature}")


def check_batch(num_rows: int, batch_size: int) -> None:
    """A dataset smaller than a batch makes PPOTrainer loop forever."""
    if num_rows < batch_size:
        raise ValueError(
            f"train_dataset has {num_rows} rows, fewer than one batch of {batch_size} episodes "
            "(per_device_train_batch_size x gradient_accumulation_steps x processes); give more rows or use smaller "
            "batches"
        )
