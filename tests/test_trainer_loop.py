"""The training loop: optimizer steps, ratios, determinism, callbacks, logs, evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainer_fakes import (
    largest_difference,
    logs_without,
    make_policy,
    make_tokenizer,
    make_trainer,
    tasks,
    weights,
)
from transformers import TrainerCallback

from trl_mise import MISETrainer

ON_THE_CLOCK = ("train_runtime",)
OURS = ("on_step_end", "on_phase", "on_event", "on_open", "on_failure", "on_close")
"""Called without a state, or written down in a way of its own."""


class Recorder(TrainerCallback):
    """Writes down every event; stops the training after `stop_after` updates."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.events: list[str] = []
        self.records: list[Any] = []
        self.stop_after = stop_after

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") and name not in OURS:
            return lambda args, state, control, **kwargs: self.events.append(name)
        return super().__getattribute__(name)

    def on_step_end(self, args: Any, state: Any, control: Any, update: Any = None, **kwargs: Any) -> None:
        self.events.append("on_step_end")
        self.records.append(update)
        if self.stop_after == len(self.records):
            control.should_training_stop = True


def trained_weights(trainer: MISETrainer) -> dict[str, Any]:
    return weights(trainer.actor_critic)


# Optimizer steps


@pytest.mark.parametrize(
    ("micro", "accumulation", "mini_batches", "epochs"),
    [(8, 1, 1, 1), (2, 4, 1, 2), (2, 4, 2, 2), (2, 4, 4, 3), (4, 2, 8, 1), (8, 1, 4, 2)],
)
def test_optimizer_steps_are_counted_exactly(
    tmp_path: Path, micro: int, accumulation: int, mini_batches: int, epochs: int
) -> None:
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        num_mini_batches=mini_batches,
        num_ppo_epochs=epochs,
        callbacks=[recorder],
    )
    inner = trainer.optimizer.optimizer  # below accelerate, which would swallow steps
    real_steps = []
    step = inner.step
    inner.step = lambda *args, **kwargs: (real_steps.append(1), step(*args, **kwargs))[1]
    trainer.train()
    expected = 2 * mini_batches * epochs
    assert len(real_steps) == expected
    assert recorder.events.count("on_optimizer_step") == recorder.events.count("on_pre_optimizer_step") == expected
    assert [entry["num_optimizer_steps"] for entry in trainer.state.log_history] == [expected / 2] * 2
    assert trainer.state.global_step == 2 and trainer.state.episode == 16


def test_micro_batches_add_up_to_the_mini_batch(tmp_path: Path) -> None:
    """8 x 1 = 2 x 4, although episodes have different numbers of tokens. (SGD: Adam would blow up rounding.)"""
    results = []
    for micro in (8, 2):
        trainer = make_trainer(
            tmp_path / str(micro),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=8 // micro,
            total_episodes=8,
            num_ppo_epochs=1,
            optim="sgd",
            hindsight=False,
        )
        trainer.train()
        results.append(trained_weights(trainer))
    assert largest_difference(*results) < 1e-6
    assert largest_difference(results[0], trained_weights(make_trainer(tmp_path))) > 1e-4


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """With SGD the length of a step is the learning rate times the norm of the gradient."""
    lengths, norms = {}, {}
    for limit in (1e-3, 0.0):
        trainer = make_trainer(
            tmp_path, max_grad_norm=limit, optim="sgd", learning_rate=1.0, total_episodes=8, num_ppo_epochs=1,
            hindsight=False,
        )  # fmt: skip
        before = trained_weights(trainer)
        trainer.train()
        after = trained_weights(trainer)
        lengths[limit] = float(sum(((after[name] - before[name]) ** 2).sum() for name in after)) ** 0.5
        norms[limit] = trainer.state.log_history[0].get("grad_norm")
    assert lengths[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert lengths[0.0] > 0.1
    assert norms[1e-3] == pytest.approx(lengths[0.0], rel=1e-3)  # what is logged is the norm before clipping
    assert norms[0.0] is None


# Ratios


BENDING_OPTIONS = {
    "repetition_penalty": 1.3,
    "top_p": 0.5,
    "min_new_tokens": 3,
    "top_k": 5,
    "temperature": 0.3,
    "no_repeat_ngram_size": 2,
}


@pytest.mark.parametrize("options", [{}, BENDING_OPTIONS], ids=["neutral", "bending"])
def test_ratios_are_exactly_one_without_learning(tmp_path: Path, options: dict[str, Any]) -> None:
    tokenizer = make_tokenizer()
    model = make_policy(tokenizer)
    for name, value in options.items():
        setattr(model.generation_config, name, value)
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path,
        tokenizer=tokenizer,
        model=model,
        learning_rate=0.0,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_mini_batches=2,
        temperature=0.7,
        callbacks=[recorder],
    )
    trainer.train()
    assert [entry["val/ratio_max_deviation"] for entry in trainer.state.log_history] == [0.0, 0.0]
    assert [entry["policy/approxkl_avg"] for entry in trainer.state.log_history] == [0.0, 0.0]
    for name, value in options.items():
        assert getattr(model.generation_config, name) == value  # hidden, not overwritten
    # And the samples are those of the policy, not of the bent distribution: some actions are shorter than 3 tokens.
    lengths = [
        end - start
        for r in recorder.records
        for t in r.trajectories
        for start, end in (turn.action_span for turn in t.turns)
    ]
    assert min(lengths) < 3


def test_ratios_are_exactly_one_for_a_model_with_dropout(tmp_path: Path) -> None:
    """Also where the dropout is no module, but a number that the attention reads in training mode."""
    model = make_policy(make_tokenizer(), attention_dropout=0.3)
    trainer = make_trainer(tmp_path, model=model, learning_rate=0.0, num_mini_batches=2)
    trainer.train()
    assert [entry["val/ratio_max_deviation"] for entry in trainer.state.log_history] == [0.0, 0.0]


def test_the_model_s_generation_config_has_no_say(tmp_path: Path) -> None:
    results = []
    for options in ({}, BENDING_OPTIONS):
        tokenizer = make_tokenizer()
        model = make_policy(tokenizer)
        for name, value in options.items():
            setattr(model.generation_config, name, value)
        trainer = make_trainer(tmp_path, tokenizer=tokenizer, model=model)
        trainer.train()
        results.append(trained_weights(trainer))
    assert largest_difference(*results) == 0.0


# Determinism


def test_same_seed_same_weights_and_logs(tmp_path: Path) -> None:
    runs = []
    for seed in (5, 5, 6):
        trainer = make_trainer(tmp_path, seed=seed, verdict_mode="sampled", num_mini_batches=2)
        np.random.seed(len(runs))  # global random states have no influence
        torch.manual_seed(len(runs))
        trainer.train()
        runs.append((trained_weights(trainer), logs_without(trainer.state.log_history, *ON_THE_CLOCK)))
    (first, first_log), (second, second_log), (other, _) = runs
    assert largest_difference(first, second) == 0.0
    assert first_log == second_log
    assert largest_difference(first, other) > 1e-4


# Callbacks and flow


def test_the_whole_set_of_callbacks_fires_in_order(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path,
        callbacks=[recorder],
        eval_dataset=tasks(4),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=2,
        num_ppo_epochs=1,
        num_mini_batches=2,
    )
    trainer.train()
    steps = ["on_pre_optimizer_step", "on_optimizer_step"] * 2
    first = ["on_step_begin", *steps, "on_step_end", "on_log", "on_log", "on_evaluate"]
    second = [*first, "on_save"]
    expected = ["on_train_begin", "on_epoch_begin", *first, *second, "on_epoch_end", "on_train_end"]
    # Where our own base takes PPOTrainer's place, transformers' constructor fires this one.
    assert [event for event in recorder.events if event != "on_init_end"] == expected


def test_every_event_of_transformers_is_known_here() -> None:
    """A new event in transformers should be looked at: must our loop fire it?"""
    events = {name for name in dir(TrainerCallback) if name.startswith("on_")}
    fired = {
        *("on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end", "on_step_begin", "on_step_end"),
        *("on_pre_optimizer_step", "on_optimizer_step", "on_log", "on_evaluate", "on_save"),
    }
    not_ours = {"on_init_end", "on_substep_end", "on_predict", "on_prediction_step", "on_push_begin"}
    assert events <= fired | not_ours
    assert fired <= events


def test_should_training_stop_stops(tmp_path: Path) -> None:
    recorder = Recorder(stop_after=2)
    trainer = make_trainer(tmp_path, total_episodes=80, callbacks=[recorder])
    output = trainer.train()
    assert output.global_step == trainer.state.global_step == 2
    assert recorder.events[-1] == "on_train_end"
    assert output.metrics["train_episodes"] == 16


@pytest.mark.parametrize("total", [17, 24])
def test_total_episodes_are_rounded_up_to_whole_batches(tmp_path: Path, total: int) -> None:
    trainer = make_trainer(tmp_path, total_episodes=total)
    trainer.train()
    assert trainer.state.global_step == 3 and trainer.state.episode == 24
    assert trainer.state.epoch == pytest.approx(1.5)


def test_strategies_by_epoch(tmp_path: Path) -> None:
    """16 tasks, batches of 8: an epoch is two updates; the third epoch's end must not be lost."""
    trainer = make_trainer(
        tmp_path, total_episodes=48, logging_strategy="epoch", eval_strategy="epoch", save_strategy="epoch",
        eval_dataset=tasks(4),
    )  # fmt: skip
    trainer.train()
    log = trainer.state.log_history
    assert [entry["step"] for entry in log if "episode" in entry] == [2, 4, 6]
    assert [entry["step"] for entry in log if "eval_success" in entry] == [2, 4, 6]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    ]


# Logs


def test_logs_are_means_over_the_window(tmp_path: Path) -> None:
    """Logging does not influence the training, so the same run is logged in two ways."""
    logs = []
    for logging_steps in (1, 2):
        trainer = make_trainer(tmp_path, total_episodes=32, logging_steps=logging_steps)
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "episode" in entry])
    every, second = logs
    assert [entry["step"] for entry in every] == [1, 2, 3, 4]
    assert [entry["step"] for entry in second] == [2, 4]
    for window, (first, last) in zip(second, (every[:2], every[2:]), strict=True):
        for name in ("env/return", "loss/policy_avg", "objective/kl", "hindsight/score_mean", "grad_norm"):
            assert window[name] == pytest.approx((first[name] + last[name]) / 2)
        assert window["episode"] == last["episode"]
        assert window["lr"] == last["lr"]


def test_what_is_logged(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    output = trainer.train()
    entry = trainer.state.log_history[-1]
    ppo_names = {
        *("objective/kl", "objective/entropy", "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg"),
        *("loss/policy_avg", "loss/value_avg", "val/clipfrac_avg", "policy/entropy_avg", "val/ratio", "lr", "episode"),
    }
    ours = {
        *("env/success", "env/return", "env/episode_length", "env/invalid_action_rate", "env/truncated_rate"),
        *("hindsight/score_mean", "hindsight/within_episode_spread", "hindsight/verdict_entropy"),
        *("mise/mutual_information", "mise/kl_to_proxy", "calibration/loss", "calibration/anchor", "grad_norm"),
    }
    assert ppo_names | ours <= entry.keys()
    assert all(np.isfinite(value) for value in entry.values())
    losses = [entry["loss/policy_avg"] for entry in trainer.state.log_history]
    assert output.training_loss == pytest.approx(np.mean(losses))
    assert entry["lr"] == pytest.approx(0.5e-2)  # linear schedule: PPOTrainer logs the rate that was used
    assert entry["env/episode_length"] == 3


# Evaluation


def test_evaluation_during_training(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total_episodes=32, eval_dataset=tasks(6), eval_strategy="steps", eval_steps=2)
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_success" in entry]
    assert [entry["step"] for entry in evaluations] == [2, 4]
    assert evaluations[0]["eval_episodes"] == 6


def test_evaluate_plays_greedily(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, eval_dataset=tasks(6))
    before = trained_weights(trainer)
    first, second = trainer.evaluate(), trainer.evaluate()
    names = {"eval_success", "eval_return", "eval_episode_length", "eval_invalid_action_rate", "eval_episodes"}
    assert names <= first.keys()
    assert first == second
    assert largest_difference(before, trained_weights(trainer)) == 0.0
    played = trainer.collect([dict(row) for row in tasks(6)], greedy=True)
    assert first["eval_return"] == pytest.approx(np.mean([t.episode_return for t in played]))
    assert trainer.model.training  # left as it was


def test_evaluate_other_data(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="eval_dataset"):
        trainer.evaluate()
    metrics = trainer.evaluate({"easy": tasks(2), "hard": tasks(3)}, metric_key_prefix="test")
    assert metrics["test_easy_episodes"] == 2 and metrics["test_hard_episodes"] == 3


def test_evaluation_changes_nothing_in_the_training(tmp_path: Path) -> None:
    results = []
    for strategy in ("no", "steps"):
        trainer = make_trainer(
            tmp_path, eval_dataset=tasks(4), eval_strategy=strategy, eval_steps=1, total_episodes=24
        )
        trainer.train()
        results.append(trained_weights(trainer))
    assert largest_difference(*results) == 0.0
