"""What the trainers tell callbacks beside transformers' events: phases, and what went wrong in an update."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_grpo
from toy_episodes import FakeAccelerator
from trainer_fakes import PROMPT, make_tokenizer, make_trainer, tasks
from transformers import TrainerCallback

from trl_mise import HindsightHealthWarning, MISEGRPOTrainer, NonFiniteUpdate
from trl_mise.callback import HealthCallback, UpdateRecord, call_hooks
from trl_mise.chat import ChatFormat
from trl_mise.health import HealthThresholds
from trl_mise.hindsight import HindsightReward

Event = tuple[str, str, int]


class Events(TrainerCallback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = 0

    def on_event(self, kind: str, message: str, update: int) -> None:
        self.events.append((kind, message, update))

    def on_close(self) -> None:
        self.closed += 1


class Complaint(TrainerCallback):
    """Says something of every update, as [`HealthCallback`] does where a judge fails."""

    def __init__(self, warn: bool = False) -> None:
        self.warn = warn

    def on_step_end(self, args: Any, state: Any, control: Any, update: UpdateRecord | None = None, **_: Any) -> None:
        if update is not None:
            update.warnings.append(f"complaint {update.number}")
            if self.warn:
                warnings.warn("complaint", HindsightHealthWarning, stacklevel=2)


class BadVerdicts(HindsightReward):
    """Verdicts of the first update that are not finite."""

    asked = 0

    def verdict_probs(self, model: Any, trajectories: Sequence[Any]) -> np.ndarray:
        probs = super().verdict_probs(model, trajectories)
        if self.asked == 0:
            probs[0] = math.nan
        self.asked += 1
        return probs


def bad_judge() -> BadVerdicts:
    return BadVerdicts(ChatFormat(make_tokenizer()), prompt=PROMPT)


def test_what_was_said_of_an_update_is_told_after_it(tmp_path: Path) -> None:
    events = Events()
    make_trainer(tmp_path, callbacks=[events, Complaint()]).train()
    assert events.events == [("health", "complaint 1", 1), ("health", "complaint 2", 2)]


def test_of_a_batch_of_completions_too(tmp_path: Path) -> None:
    events = Events()
    config = test_grpo.config(tmp_path)
    test_grpo.make(MISEGRPOTrainer, config, callbacks=[events, Complaint()]).train()
    assert events.events == [("health", f"complaint {batch}", batch) for batch in (1, 2, 3)] and events.closed == 1


def test_a_warning_that_ends_the_run_is_told_first(tmp_path: Path) -> None:
    events = Events()
    trainer = make_trainer(tmp_path, callbacks=[events, Complaint(warn=True)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", HindsightHealthWarning)
        with pytest.raises(HindsightHealthWarning):
            trainer.train()
    assert events.events == [("health", "complaint 1", 1)] and events.closed == 1


def test_an_update_that_is_skipped(tmp_path: Path) -> None:
    events = Events()
    with pytest.warns(RuntimeWarning, match="update 1: a verdict is not finite"):
        make_trainer(tmp_path, hindsight=bad_judge(), callbacks=[events]).train()
    ((kind, message, update),) = events.events
    assert (kind, update) == ("skipped", 1) and message.startswith("a verdict is not finite")


def test_one_too_many_is_told_before_the_run_ends(tmp_path: Path) -> None:
    events = Events()
    trainer = make_trainer(tmp_path, hindsight=bad_judge(), callbacks=[events], max_skipped_steps=0)
    with pytest.raises(NonFiniteUpdate):
        trainer.train()
    assert [(kind, update) for kind, _, update in events.events] == [("skipped", 1)]


def test_a_batch_without_hindsight(tmp_path: Path) -> None:
    events = Events()
    trainer = test_grpo.make(MISEGRPOTrainer, test_grpo.config(tmp_path), hindsight=bad_judge(), callbacks=[events])
    with pytest.warns(RuntimeWarning, match="update 1: the verdicts"):
        trainer.train()
    ((kind, message, update),) = events.events
    assert (kind, update) == ("skipped", 1) and "hindsight is left out" in message


def test_the_health_callback_leaves_what_it_says_in_the_record(tmp_path: Path) -> None:
    callback = HealthCallback(HealthThresholds(patience=1, collapsed_information=0.5))
    trainer = make_trainer(tmp_path, hindsight=False)
    judge = HindsightReward(ChatFormat(make_tokenizer()), prompt=PROMPT)
    trajectories = trainer.collect([{"seed": seed} for seed in range(4)])
    scores = judge.score(trainer.policy, trajectories)
    record = UpdateRecord(
        trajectories,
        scores,
        judge,
        trainer.policy,
        trainer.reference_policy,
        FakeAccelerator(),
        3,
        {"mise/mutual_information": 0.0, "env/success": 0.0},
    )
    with pytest.warns(HindsightHealthWarning, match="collapsed") as caught:
        callback.on_step_end(trainer.args, trainer.state, trainer.control, update=record)
    assert [f"update {trainer.state.global_step}: {said}" for said in record.warnings] == [str(caught[0].message)]


def test_an_evaluation_outside_of_a_run_closes_too_and_one_within_does_not(tmp_path: Path) -> None:
    events = Events()
    trainer = make_trainer(tmp_path, callbacks=[events], eval_dataset=tasks(4), eval_strategy="steps", eval_steps=1)
    trainer.evaluate()
    assert events.closed == 1
    trainer.train()
    assert events.closed == 2


def test_callbacks_without_the_hook_are_left_alone() -> None:
    events = Events()
    call_hooks([TrainerCallback(), events], "on_event", "health", "ill", 4)
    assert events.events == [("health", "ill", 4)]
