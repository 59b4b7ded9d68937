"""A loss or gradient that is not finite costs a step, not the run; too many in a row end it, the episodes named."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_fakes import largest_difference, make_trainer, weights
from transformers import TrainerCallback

from trl_mise import MISETrainer, NonFiniteUpdate
from trl_mise.callback import CalibrationCallback


class Poison(TrainerCallback):
    """Puts a number into the gradient before some of the optimizer steps."""

    def __init__(self, steps: range, value: float) -> None:
        self.steps, self.value, self.seen = steps, value, 0
        self.taken = 0
        self.trainer: MISETrainer | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.seen in self.steps and self.trainer is not None:
            next(p for p in self.trainer.actor_critic.parameters() if p.grad is not None).grad[0] = self.value
        self.seen += 1

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.taken += 1


def poisoned(folder: Path, steps: range, value: float = math.nan, **options: Any) -> tuple[MISETrainer, Poison]:
    poison = Poison(steps, value)
    trainer = make_trainer(
        folder,
        **{
            "callbacks": [poison],
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "num_mini_batches": 2,
            **options,
        },
    )
    poison.trainer = trainer
    return trainer, poison


def is_finite(trainer: MISETrainer) -> bool:
    moments = [m for state in trainer.optimizer.state.values() for m in (state["exp_avg"], state["exp_avg_sq"])]
    return all(t.isfinite().all() for t in [*weights(trainer.actor_critic).values(), *moments])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_grad_norm", [1.0, None])
def test_a_step_is_skipped_and_the_run_goes_on(tmp_path: Path, value: float, max_grad_norm: float | None) -> None:
    trainer, poison = poisoned(tmp_path, range(1, 3), value, max_grad_norm=max_grad_norm)
    with pytest.warns(
        RuntimeWarning, match=r"update 1: loss or gradient is not finite.*2 in a row; max_skipped_steps=10"
    ):
        trainer.train()
    assert is_finite(trainer)
    assert (poison.seen, poison.taken) == (8, 6)
    logged = [entry["num_skipped_steps"] for entry in trainer.state.log_history if "num_skipped_steps" in entry]
    assert logged == [2.0, 0.0]
    assert all(math.isfinite(entry["loss/policy_avg"]) for entry in trainer.state.log_history if "episode" in entry)


def test_nothing_of_it_without_a_fault(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    trainer, poison = poisoned(tmp_path, range(0))
    trainer.train()
    assert poison.taken == 8
    assert not any("not finite" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize("limit", [0, 3])
def test_too_many_in_a_row_end_the_run(tmp_path: Path, limit: int) -> None:
    trainer, poison = poisoned(tmp_path, range(0, 100), max_skipped_steps=limit)
    start = weights(trainer.actor_critic)
    with pytest.raises(NonFiniteUpdate, match=rf"{limit + 1} in a row.*of the tasks .'seed': .*Lower learning_rate"):
        trainer.train()
    assert poison.seen == limit + 1 and poison.taken == 0
    assert largest_difference(start, weights(trainer.actor_critic)) == 0.0


def test_a_good_step_in_between_starts_the_count_anew(tmp_path: Path) -> None:
    trainer, poison = poisoned(tmp_path, range(0, 100, 2), max_skipped_steps=1)
    with pytest.warns(RuntimeWarning, match="1 in a row"):
        trainer.train()
    assert (poison.seen, poison.taken) == (8, 4)


def test_the_episode_that_did_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = poisoned(tmp_path, range(0), per_device_train_batch_size=1, gradient_accumulation_steps=8)
    targets, guilty = trainer.targets, []

    def broken(trajectories: Any, *args: Any) -> Any:
        result = targets(trajectories, *args)
        result.update.advantages[5] = math.nan
        guilty.append(dict(trajectories[5].task))
        return result

    monkeypatch.setattr(trainer, "targets", broken)
    with pytest.warns(RuntimeWarning) as warned:
        trainer.train()
    assert is_finite(trainer)
    told = [str(w.message) for w in warned if "not finite" in str(w.message)]
    assert len(told) == 4  # once in every epoch of both updates
    for message, task in zip(told, (guilty[0], guilty[0], guilty[1], guilty[1]), strict=True):
        assert message.endswith(f"It was about the episodes of the tasks {task!r}")


def test_calibration_takes_no_such_step_either() -> None:
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)

    class One:
        num_processes = 1

    for max_grad_norm in (1.0, None):
        before = weights(layer)
        layer(torch.ones(1, 2)).sum().backward()
        layer.weight.grad[0, 0] = math.nan
        arguments = type("Arguments", (), {"max_grad_norm": max_grad_norm})()
        assert not CalibrationCallback._step(optimizer, arguments, One())
        assert largest_difference(before, weights(layer)) == 0.0
        layer(torch.ones(1, 2)).sum().backward()
        assert CalibrationCallback._step(optimizer, arguments, One())
        assert largest_difference(before, weights(layer)) > 0.0
