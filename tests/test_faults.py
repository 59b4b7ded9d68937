"""A loss or gradient that is not finite costs a step, not the run; too many in a row end it, the episodes named."""

import ast
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trainer_fakes import PROMPT, largest_difference, make_tokenizer, make_trainer, weights
from transformers import TrainerCallback

import trl_mise
import trl_mise.hindsight as hindsight_module
from trl_mise import MISETrainer, NonFiniteUpdate
from trl_mise.callback import CalibrationCallback
from trl_mise.chat import ChatFormat
from trl_mise.checkpoints import seal
from trl_mise.hindsight import HindsightReward
from trl_mise.scorers import Questionnaire

ROOT = Path(trl_mise.__file__).parents[1]
UNPICKLES_ITS_OWN = ("worker_factory.py",)
"""A worker gets its factory from the trainer that started it."""


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


# Verdicts


class SometimesNaN(HindsightReward):
    """Verdicts of the second episode are not finite in some of the updates (from 0)."""

    bad_updates: tuple[int, ...] = ()
    asked = 0

    def verdict_probs(self, model: Any, trajectories: Any) -> Any:
        probs = super().verdict_probs(model, trajectories)
        if self.asked in self.bad_updates:
            probs[trajectories[0].num_steps] = math.nan
        self.asked += 1
        return probs


def with_bad_verdicts(folder: Path, bad_updates: tuple[int, ...], **options: Any) -> MISETrainer:
    judge = SometimesNaN(ChatFormat(make_tokenizer()), prompt=PROMPT)
    judge.bad_updates = bad_updates
    return make_trainer(folder, hindsight=judge, **options)


def test_an_update_whose_verdicts_are_not_finite_is_skipped(tmp_path: Path) -> None:
    """Nothing of it reaches the policy, the judge's statistics or the calibration; the next update goes on."""
    trainer = with_bad_verdicts(tmp_path, (0,))
    start = weights(trainer.actor_critic)
    states: list[Any] = []

    class After(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            states.append((weights(trainer.actor_critic), trainer.hindsight.count))

    trainer.add_callback(After())
    with pytest.warns(
        RuntimeWarning, match=r"update 1: a verdict is not finite.*1 in a row.*task \{'seed': \d+\}: episode 1"
    ):
        trainer.train()
    (first, counted), (second, later) = states
    assert largest_difference(start, first) == 0.0 and largest_difference(first, second) > 1e-3
    assert (counted, later) == (0, 1)
    logged = [entry["num_skipped_steps"] for entry in trainer.state.log_history if "num_skipped_steps" in entry]
    assert logged == [2.0, 0.0]
    assert trainer._skipped_steps == 0


def test_too_many_such_updates_end_the_run(tmp_path: Path) -> None:
    trainer = with_bad_verdicts(tmp_path, (0, 1), max_skipped_steps=1)
    with (
        pytest.raises(NonFiniteUpdate, match=r"update 2: a verdict is not finite.*2 in a row"),
        pytest.warns(RuntimeWarning),
    ):
        trainer.train()


# Memory


def out_of_memory_above(monkeypatch: pytest.MonkeyPatch, limit: int, asked: list[int]) -> None:
    """Scoring in passes of more than so many tokens does not fit."""
    real = hindsight_module.score_rows

    def score_rows(*args: Any, max_tokens: int | None = None, **kwargs: Any) -> Any:
        asked.append(max_tokens or 0)
        if (max_tokens or 0) > limit:
            raise torch.OutOfMemoryError("does not fit")
        return real(*args, max_tokens=max_tokens, **kwargs)

    monkeypatch.setattr(hindsight_module, "score_rows", score_rows)


def test_scoring_that_does_not_fit_is_done_in_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []
    out_of_memory_above(monkeypatch, 64, asked)
    options = {"calibration_target": "none", "evaluator_view": "prefix", "scoring_method": "packed"}
    halved = make_trainer(tmp_path / "a", scoring_max_tokens=100, **options)
    halved.train()
    assert asked == [100, 50, 50]  # once, and then it is known
    assert "ran out of memory with scoring_max_tokens=100; going on with 50" in caplog.text
    whole = make_trainer(tmp_path / "b", scoring_max_tokens=50, **options)
    whole.train()
    assert largest_difference(weights(halved.actor_critic), weights(whole.actor_critic)) == 0.0


def test_it_is_halved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    out_of_memory_above(monkeypatch, 10, asked)
    with pytest.raises(torch.OutOfMemoryError):
        make_trainer(tmp_path, scoring_max_tokens=100, scoring_method="packed", calibration_target="none").train()
    assert asked == [100, 50]


def test_riding_questions_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pass that they ride on is made anew with half of them at a time, to the same end."""
    real = Questionnaire.ask

    def ask(self: Questionnaire, *args: Any) -> Any:
        if self.max_tokens > 600:
            raise torch.OutOfMemoryError("does not fit")
        return real(self, *args)

    plain = make_trainer(tmp_path / "a", scoring_max_tokens=500, calibration_target="none")
    plain.train()
    monkeypatch.setattr(Questionnaire, "ask", ask)
    trainer = make_trainer(tmp_path / "b", scoring_max_tokens=1000, calibration_target="none")
    trainer.train()
    assert trainer.hindsight.max_tokens == 500 and "ran out of memory" in caplog.text
    assert largest_difference(weights(trainer.actor_critic), weights(plain.actor_critic)) == 0.0


# What comes from others: names, and files


HOSTILE_NAMES = ("../../out", "/tmp/out", "..\\..\\out", "a/b", "con\x00", "~/out", "$(touch out)", "x" * 5000)


def test_no_name_of_a_task_leads_out_of_the_output_folder(tmp_path: Path) -> None:
    rows = [
        {"seed": i, "name": HOSTILE_NAMES[i % len(HOSTILE_NAMES)], "task": HOSTILE_NAMES[i % 3]} for i in range(16)
    ]
    output = tmp_path / "deep" / "down" / "run"
    trainer = make_trainer(output, train_dataset=Dataset.from_list(rows), save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.evaluate({"../../out": Dataset.from_list(rows[:2])})
    trainer.save_model()
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and output not in path.parents]
    assert outside == [] and sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert {path.name for path in (tmp_path / "deep" / "down").iterdir()} == {"run"}
    records = [json.loads(line) for line in (output / "trajectories.jsonl").read_text().splitlines()]
    assert {record["task"]["name"] for record in records} == set(HOSTILE_NAMES)


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "calibration_optimizer.pt"])
def test_a_checkpoint_from_somebody_else_runs_no_code(tmp_path: Path, name: str) -> None:
    """With checksums that fit, as whoever wrote it would make them."""
    trainer = make_trainer(tmp_path / "run", save_strategy="steps", save_steps=1)
    trainer.train()
    folder = tmp_path / "run" / "checkpoint-1"
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    seal(folder)
    again = make_trainer(tmp_path / "run")
    with pytest.raises(pickle.UnpicklingError):
        again.train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "exploded").exists()
    pickle.loads((folder / name).read_bytes())
    assert (tmp_path / "exploded").exists()  # it would have


def test_nothing_of_ours_unpickles() -> None:
    """Every call that could: `torch.load` says weights_only=True, and pickle is only ever written (to a worker)."""
    for path in [*Path(trl_mise.__file__).parent.rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load":
                assert keywords.get("weights_only") == "True", path
            assert called not in ("pickle.load", "yaml.load", "dill.load", "joblib.load", "marshal.loads"), path
            assert keywords.get("allow_pickle", "False") == "False", path
            if called == "pickle.loads":
                assert path.name in UNPICKLES_ITS_OWN, path
