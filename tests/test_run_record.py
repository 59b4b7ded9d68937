"""What a run leaves beside weights: `run.json`, `metrics.jsonl`, `events.jsonl`, evaluations, timings."""

import functools
import json
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from trainer_fakes import LetterEnv, make_trainer, tasks
from transformers import TrainerCallback

from trl_mise.callback import UpdateRecord
from trl_mise.notices import warn_once
from trl_mise.run_record import PhaseTimer, RunFacts, RunRecorder, described, finite


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_json(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return record


def test_a_run_and_its_evaluations(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total_episodes=16, logging_steps=1, eval_dataset=tasks(3), save_strategy="no")
    trainer.evaluate()
    assert not (tmp_path / "run.json").exists()
    trainer.train()
    trainer.evaluate()

    record = run_json(tmp_path)
    assert record["status"] == "finished" and record["error"] is None and record["resumed"] == []
    assert record["started"] <= record["ended"]
    assert (record["trainer"], record["environment"]) == ("MISETrainer", "LetterEnv")
    assert record["total_updates"] * record["batch_size"] == 16
    assert record["eval_tasks"] == 3 and record["train_tasks"] == len(trainer.train_dataset)
    parameters = list(trainer.policy.parameters())
    assert record["num_parameters"] == sum(p.numel() for p in parameters)
    assert record["options"]["hindsight_verdicts"] == trainer.args.hindsight_verdicts
    assert record["options"]["learning_rate"] == trainer.args.learning_rate
    assert {"python", "torch", "trl", "transformers"} <= record["versions"].keys()

    logged = json.loads(json.dumps(trainer.state.log_history))
    assert lines(tmp_path / "metrics.jsonl") == logged
    done = record["total_updates"]
    assert [entry["step"] for entry in logged if "eval_success" in entry] == [0, done]
    played = lines(tmp_path / "evaluations.jsonl")
    assert [(e["update"], e["split"]) for e in played] == [(0, "eval")] * 3 + [(done, "eval")] * 3
    assert [e["task"] for e in played[:3]] == [e["task"] for e in played[3:]]


def test_evaluating_again_and_again_before_training_keeps_the_last(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total_episodes=8, eval_dataset={"a": tasks(2), "b": tasks(3)})
    for _ in range(3):
        trainer.evaluate()
    trainer.train()
    played = lines(tmp_path / "evaluations.jsonl")
    assert [(e["update"], e["split"]) for e in played] == [(0, "eval_a")] * 2 + [(0, "eval_b")] * 3


def test_an_evaluation_alone_leaves_an_earlier_record_as_it_is(tmp_path: Path) -> None:
    make_trainer(tmp_path, total_episodes=8, eval_dataset=tasks(2), eval_strategy="steps", eval_steps=1).train()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {"run.json", "metrics.jsonl", "evaluations.jsonl"} <= before.keys()
    make_trainer(tmp_path, total_episodes=8, eval_dataset=tasks(2)).evaluate()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_steps_have_the_credit_that_the_update_used(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total_episodes=8, hindsight_gate="none")
    seen: list[UpdateRecord] = []

    class Remember(TrainerCallback):
        def on_step_end(self, *args: Any, update: UpdateRecord | None = None, **kwargs: Any) -> None:
            assert update is not None
            seen.append(update)

    trainer.add_callback(Remember())
    trainer.train()
    record = seen[0]
    assert record.credit is not None and record.scores is not None and record.hindsight is not None
    played = lines(tmp_path / "trajectories.jsonl")[: len(record.trajectories)]
    shaping = [turn["shaping"] for episode in played for turn in episode["turns"]]
    assert shaping == pytest.approx(np.concatenate(record.credit.shaping), abs=1e-6)
    scores = np.array([turn["score"] for episode in played for turn in episode["turns"]])
    # The normalised score is affine in the score: the best praised step has the largest shaping.
    assert np.corrcoef(scores, shaping)[0, 1] > 0.99 and np.abs(shaping).max() > 0
    tokens = [end - start for t in record.trajectories for start, end in (turn.action_span for turn in t.turns)]
    advantages = [turn["advantage"] for episode in played for turn in episode["turns"]]
    assert np.average(advantages, weights=tokens) == pytest.approx(0, abs=1e-4)  # whitened over tokens


def test_no_hindsight_no_shaping(tmp_path: Path) -> None:
    make_trainer(tmp_path, total_episodes=8, hindsight_coef=0).train()
    turns = [turn for episode in lines(tmp_path / "trajectories.jsonl") for turn in episode["turns"]]
    assert turns and all("advantage" in turn and "shaping" not in turn for turn in turns)


def test_a_run_that_goes_on_takes_back_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "total_episodes": 32,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_dataset": tasks(2),
    }
    whole = make_trainer(tmp_path / "whole", eval_strategy="steps", eval_steps=1, **options)
    whole.evaluate()
    whole.train()

    class Dies(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                raise RuntimeError("the power is cut")

    cut = make_trainer(tmp_path / "cut", eval_strategy="steps", eval_steps=1, callbacks=[Dies()], **options)
    cut.evaluate()
    with pytest.raises(RuntimeError, match="power"):
        cut.train()
    record = run_json(tmp_path / "cut")
    assert record["status"] == "failed" and record["error"] == "RuntimeError: the power is cut"
    with (tmp_path / "cut" / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"update": 1, "kind": "health", "message": "kept"}\n')
        file.write('{"update": 3, "kind": "health", "message": "after the checkpoint"}\n{"update": 3, "ki')

    resumed = make_trainer(tmp_path / "cut", eval_strategy="steps", eval_steps=1, **options)
    resumed.evaluate()  # before it is known that the run goes on; not part of it
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    record = run_json(tmp_path / "cut")
    assert record["status"] == "finished" and record["error"] is None
    assert [entry["update"] for entry in record["resumed"]] == [2]
    for name in ("trajectories.jsonl", "evaluations.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    steps = [
        [
            (entry["step"], sorted(name for name in entry if not name.startswith("time/")))
            for entry in lines(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "cut")
    ]
    assert steps[0] == steps[1]
    assert [e["message"] for e in lines(tmp_path / "cut" / "events.jsonl") if e["update"] < 4] == ["kept"]


def test_a_run_that_is_stopped_says_so(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = True

    make_trainer(tmp_path, total_episodes=32, callbacks=[Stop()]).train()
    assert run_json(tmp_path)["status"] == "stopped"


def test_a_second_run_of_one_trainer_starts_a_new_record(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total_episodes=8, logging_steps=1)
    trainer.train()
    first = lines(tmp_path / "metrics.jsonl")
    trainer.train()
    second = lines(tmp_path / "metrics.jsonl")
    assert [entry["step"] for entry in second] == [entry["step"] for entry in first]


def test_the_seconds_of_every_phase_are_logged(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total_episodes=16, logging_steps=1)
    trainer.train()
    for entry in lines(tmp_path / "metrics.jsonl"):
        times = {name.removeprefix("time/"): v for name, v in entry.items() if name.startswith("time/")}
        assert {"rollout", "evaluate", "scoring", "update", "calibrate"} <= times.keys()
        assert all(seconds >= 0 for seconds in times.values())


def test_a_timer_counts_each_phase() -> None:
    ticks = iter([0.0, 0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0])
    timer = PhaseTimer(clock=lambda: next(ticks))
    timer.on_train_begin(None, None, None)  # t = 0
    timer.on_phase("rollout")  # t = 1: one second of something else
    timer.on_phase("rollout", " 3/8 episodes")  # still the same
    timer.on_phase("update")  # t = 3
    update = SimpleNamespace(metrics={})
    timer.on_step_end(None, None, None, update=update)  # t = 6
    assert update.metrics == {"time/other": 1.0, "time/rollout": 2.0, "time/update": 3.0}
    timer.on_phase("evaluation")  # t = 10, after the update's end
    timer.on_phase("rollout")  # t = 15
    following = SimpleNamespace(metrics={})
    timer.on_step_end(None, None, None, update=following)  # t = 21
    assert following.metrics == {"time/other": 4.0, "time/evaluation": 5.0, "time/rollout": 6.0}


class TestRecorder:
    def recorder(self, folder: Path) -> tuple[RunRecorder, Any, Any]:
        facts = RunFacts("T", "m", 1, 1, "cpu", 1, None, 1, None, 4, {"lr": float("nan")})
        recorder = RunRecorder(facts, now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc))
        state = SimpleNamespace(
            is_world_process_zero=True, global_step=0, max_steps=2, log_history=[{"step": 0, "eval_success": 0.5}]
        )
        return recorder, SimpleNamespace(output_dir=str(folder)), state

    def test_other_processes_write_nothing(self, tmp_path: Path) -> None:
        recorder, args, state = self.recorder(tmp_path)
        state.is_world_process_zero = False
        recorder.on_train_begin(args, state, None)
        recorder.on_log(args, state, None)
        recorder.on_event("health", "ill", 1)
        recorder.on_train_end(args, state, None)
        assert list(tmp_path.iterdir()) == []

    def test_numbers_that_are_none(self, tmp_path: Path) -> None:
        recorder, args, state = self.recorder(tmp_path)
        recorder.on_train_begin(args, state, None)
        state.log_history.append({"step": 1, "loss": float("inf"), "odd": np.float32(2)})
        recorder.on_log(args, state, None)
        assert lines(tmp_path / "metrics.jsonl")[1] == {"step": 1, "loss": None, "odd": 2.0}
        assert run_json(tmp_path)["options"] == {"lr": None}
        assert run_json(tmp_path)["started"] == "2026-01-02T03:04:05+00:00"

    def test_any_text(self, tmp_path: Path) -> None:
        recorder, args, state = self.recorder(tmp_path)
        recorder.on_train_begin(args, state, None)
        hostile = "a\u2028b\n\ud800</script>\x00"
        recorder.on_event("health", hostile, 1)
        content = (tmp_path / "events.jsonl").read_bytes()
        assert content.count(b"\n") == 1
        assert json.loads(content) == {"update": 1, "kind": "health", "message": hostile}

    def test_a_message_of_two_paragraphs_survives_a_resumption(self, tmp_path: Path) -> None:
        """JSON leaves these separators as they are, and Python takes them for the ends of lines."""
        recorder, args, state = self.recorder(tmp_path)
        recorder.on_train_begin(args, state, None)
        recorder.on_event("health", "one\u2028two\x85three", 1)
        written = (tmp_path / "events.jsonl").read_bytes()
        resumed, args, state = self.recorder(tmp_path)
        state.global_step = 1
        resumed.on_train_begin(args, state, None)
        assert (tmp_path / "events.jsonl").read_bytes() == written != b""

    def test_a_full_disk_costs_lines_and_not_the_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recorder, args, state = self.recorder(tmp_path)
        recorder.on_train_begin(args, state, None)
        warn_once.cache_clear()  # another test may have had a full disk
        full = functools.partial(_raise, OSError(28, "No space left on device"))
        monkeypatch.setattr("trl_mise.run_record.json.dumps", full)
        with pytest.warns(UserWarning, match="record of this run is incomplete: .*No space"):
            recorder.on_log(args, state, None)
        recorder.on_failure(KeyboardInterrupt())

    def test_an_interrupted_run(self, tmp_path: Path) -> None:
        recorder, args, state = self.recorder(tmp_path)
        recorder.on_train_begin(args, state, None)
        recorder.on_failure(KeyboardInterrupt())
        assert run_json(tmp_path)["status"] == "stopped"


def _raise(error: Exception, *args: Any, **kwargs: Any) -> None:
    raise error


def test_what_makes_environments_in_words() -> None:
    assert described(LetterEnv) == "LetterEnv"
    assert described(functools.partial(LetterEnv, 3, length=2)) == "LetterEnv(3, length=2)"
    assert described({"a": LetterEnv, "b": functools.partial(LetterEnv)}) == "a: LetterEnv, b: LetterEnv()"


def test_finite_goes_all_the_way_down() -> None:
    assert finite({"a": [1.0, float("nan"), {"b": float("-inf")}], 3: "x"}) == {
        "a": [1.0, None, {"b": None}],
        "3": "x",
    }
