"""A run that was interrupted and goes on is the run that was never interrupted: same weights, logs and episodes."""

import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from test_writing import scribe
from torch import Tensor
from trainer_fakes import (
    DIGITS,
    LETTERS,
    CoinEnv,
    make_classifier,
    make_policy,
    make_tokenizer,
    make_trainer,
    tasks,
    weights,
)
from transformers import TrainerCallback

from trl_mise import MISETrainer
from trl_mise.callback import stateful_callbacks
from trl_mise.checkpoints import CheckpointError, faults

UPDATES = 5
LORA = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"], "lora_dropout": 0.5}


class ByTheContext:
    """Says what the context alone decides, one to three tokens: the same tasks give the same episodes anywhere."""

    @contextmanager
    def session(self, policy: Any, sampling: Any) -> Iterator[Any]:
        words = [make_tokenizer().convert_tokens_to_ids(word) for word in (*LETTERS, *DIGITS)]

        def say(context: Sequence[int]) -> list[int]:
            rng = random.Random(str(list(context)))
            return [*rng.choices(words, k=rng.randint(0, 2)), sampling.stop_token_ids[0]]

        yield lambda contexts: [say(context) for context in contexts]


class TooLongOnOne(CoinEnv):
    """The first process's tasks leave no room for a single action."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        return "say " * 500 if os.environ.get("RANK") == "0" else observation, info


class BreaksOnOne(CoinEnv):
    """Most of the first process's episodes fail; the second's do not."""

    def step(self, action: str) -> Any:
        if os.environ.get("RANK") == "0" and self._seed % 3:
            raise RuntimeError("broken here")
        return super().step(action)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._seed = seed or 0
        return super().reset(seed=seed, options=options)


class WonOnTheOther(CoinEnv):
    """Each process's returns are all equal; those of both are not."""

    def step(self, action: str) -> Any:
        self._won = os.environ.get("RANK") == "1"
        return super().step(action)


# Nothing in it is drawn by one process alone, but the order in which episodes are taken up.
SHARED = {
    **{"verdict_mode": "expected", "calibration_target": "none", "posthoc_calibrator": "identity"},
    **{"num_mini_batches": 1, "train_dataset": tasks(16)},
}


def trainer_of(folder: Path, kind: str = "plain", **options: Any) -> MISETrainer:
    """Every random source and every piece of state that a run has: sampled verdicts, post-hoc map, calibration, gate.

    Tasks that do not divide into batches, a log every second update, so that checkpoints fall within its window.
    """
    if kind == "lora":
        options["peft_config"] = LoraConfig(**LORA)
    if kind == "value model":
        options["value_model"] = make_classifier(make_tokenizer(), seed=1)
    if kind == "by the context":
        options = {**SHARED, "generation_backend": ByTheContext(), **options}
    if kind == "too long on one":
        options = {"environment_factory": TooLongOnOne, "check_environment": False, **options}
    if kind == "won on the other":
        options = {"environment_factory": WonOnTheOther, "hindsight_patience": 1000, **options}
    if kind == "broken on one":
        options = {"environment_factory": BreaksOnOne, "max_env_error_rate": 0.9, **options}
        options |= {"check_environment": False, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    if kind == "written":
        options |= {"hindsight": scribe(gate=True), "posthoc_calibrator": "identity"}
    return make_trainer(
        folder,
        **{
            "environment_factory": CoinEnv,
            "train_dataset": tasks(19),
            "total_episodes": 8 * UPDATES,
            "num_mini_batches": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "verdict_mode": "sampled",
            "posthoc_calibrator": "platt",
            "calibration_batch_size": 4,
            "lr_scheduler_type": "cosine",
            "logging_steps": 2,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 2,
            "seed": 3,
            **options,
        },
    )


def result(trainer: MISETrainer, folder: Path) -> dict[str, Any]:
    """All that a run leaves behind, but the times."""
    logs = [{k: v for k, v in entry.items() if "time" not in k} for entry in trainer.state.log_history]
    return {
        "weights": weights(trainer.actor_critic),
        "moments": [state["exp_avg_sq"].clone() for state in trainer.optimizer.state.values()],
        "logs": json.loads(json.dumps(logs)),
        "episodes": (folder / "trajectories.jsonl").read_bytes(),
        "hindsight": trainer.hindsight.state_dict() if trainer.hindsight else None,
        "step": trainer.state.global_step,
        "torch": torch.get_rng_state(),
    }


def assert_equal(one: Any, other: Any, where: str = "run") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_equal(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list) and one and isinstance(one[0], Tensor):
        assert len(one) == len(other), where
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), where
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


class StopAfter(TrainerCallback):
    def __init__(self, update: int) -> None:
        self.update = update

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.update


@pytest.mark.parametrize("kind", ["plain", "lora", "value model", "written"])
@pytest.mark.parametrize("stopped_after", [1, 3])
def test_stopped_and_resumed(tmp_path: Path, kind: str, stopped_after: int) -> None:
    whole = trainer_of(tmp_path / "whole", kind)
    whole.train()
    assert result(whole, tmp_path / "whole")["step"] == UPDATES
    stopped = trainer_of(tmp_path / "parts", kind, callbacks=[StopAfter(stopped_after)])
    stopped.train()
    assert stopped.state.global_step == stopped_after
    torch.manual_seed(99)
    random.seed(99)
    resumed = trainer_of(tmp_path / "parts", kind)
    resumed.train(resume_from_checkpoint=True)
    # The end first: it draws from the generator that is compared.
    assert_equal(result(whole, tmp_path / "whole")["weights"], result(resumed, tmp_path / "parts")["weights"])
    ours, theirs = result(resumed, tmp_path / "parts"), result(whole, tmp_path / "whole")
    for of_run in (ours, theirs):
        of_run.pop("torch")
    assert_equal(ours, theirs)
    assert sorted(p.name for p in (tmp_path / "parts").glob("*") if p.is_dir()) == ["checkpoint-4", "checkpoint-5"]


def test_a_run_that_starts_anew_is_another(tmp_path: Path) -> None:
    """The control: without the checkpoint the comparison fails."""
    stopped = trainer_of(tmp_path, callbacks=[StopAfter(3)])
    stopped.train()
    anew = trainer_of(tmp_path / "anew", total_episodes=8 * 2)
    anew.train()
    assert anew.state.global_step == 2
    with pytest.raises(AssertionError):
        assert_equal(weights(anew.actor_critic), weights(stopped.actor_critic))


@pytest.mark.parametrize("lost", ["python", "minibatches", "tasks", "hindsight", "calibration", "optimizer"])
def test_every_piece_of_state_matters(tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controls of the comparison: a restore that forgets one thing gives another run."""
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    trainer_of(tmp_path / "parts", callbacks=[StopAfter(3)]).train()
    resumed = trainer_of(tmp_path / "parts")
    restore = resumed._restore

    def forgetful(folder: Path) -> Any:
        fresh = trainer_of(tmp_path / "fresh")
        before = {
            "minibatches": resumed._rng.bit_generator.state,
            "tasks": resumed._sampler.state_dict(),
            "hindsight": resumed.hindsight.state_dict(),
            "optimizer": fresh.optimizer.state_dict(),
        }
        restored = restore(folder)
        if lost == "minibatches":
            resumed._rng.bit_generator.state = before[lost]
        elif lost == "tasks":
            resumed._sampler.load_state_dict(before[lost])
        elif lost == "hindsight":
            resumed.hindsight.load_state_dict(before[lost])
        elif lost == "optimizer":
            resumed.optimizer.load_state_dict(before[lost])
        elif lost == "calibration":
            for callback in stateful_callbacks(resumed.callback_handler.callbacks):
                if hasattr(callback, "buffer"):
                    callback.buffer._examples.clear()
        return restored

    monkeypatch.setattr(resumed, "_restore", forgetful)
    if lost == "python":
        monkeypatch.setattr(resumed, "_restore_random_states", lambda folder: None)
    resumed.train(resume_from_checkpoint=True)
    with pytest.raises(AssertionError):
        assert_equal(weights(resumed.actor_critic), weights(whole.actor_critic))


def test_as_it_comes_from_a_command_line(tmp_path: Path) -> None:
    trainer_of(tmp_path, callbacks=[StopAfter(4)]).train(resume_from_checkpoint="false")
    resumed = trainer_of(tmp_path)
    assert resumed.train(resume_from_checkpoint="true").global_step == UPDATES
    assert (tmp_path / "trajectories.jsonl").read_text().count("\n") == 8 * UPDATES


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path)
    output = whole.train()
    again = trainer_of(tmp_path)
    assert again.train(resume_from_checkpoint=True).global_step == output.global_step == UPDATES
    assert_equal(weights(again.actor_critic), weights(whole.actor_critic))


def test_more_episodes_than_were_planned(tmp_path: Path) -> None:
    trainer_of(tmp_path, lr_scheduler_type="constant").train()
    longer = trainer_of(tmp_path, lr_scheduler_type="constant", total_episodes=8 * (UPDATES + 2))
    assert longer.train(resume_from_checkpoint=True).global_step == UPDATES + 2


def test_the_one_before_a_broken_one_is_used(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    trainer_of(tmp_path / "parts", callbacks=[StopAfter(3)]).train()
    path = tmp_path / "parts" / "checkpoint-3" / "trainable.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    resumed = trainer_of(tmp_path / "parts")
    with pytest.warns(UserWarning, match="checkpoint-3 is broken .trainable.safetensors is not what was written"):
        resumed.train(resume_from_checkpoint=True)
    assert_equal(weights(resumed.actor_critic), weights(whole.actor_critic))
    with pytest.raises(CheckpointError, match="is no whole checkpoint: there is no such folder"):
        trainer_of(tmp_path / "parts").train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


def test_a_checkpoint_by_its_path(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole", save_total_limit=None)
    whole.train()
    elsewhere = trainer_of(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="earlier episodes are missing"):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (tmp_path / "elsewhere" / "trajectories.jsonl").write_text("")
        elsewhere.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_equal(weights(elsewhere.actor_critic), weights(whole.actor_critic))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 2}, "of another run .batch_size: 8 then, 4 now"),
        ({"train_dataset": tasks(20)}, "train_dataset rows: 19 then, 20 now"),
        ({"hindsight": False}, "hindsight: True then, False now"),
        ({"model": make_policy(make_tokenizer(), seed=5)}, "reference policy: .* the reference policy is made from"),
        ({"peft_config": LoraConfig(**LORA)}, "reference policy|trains other parameters"),
        ({"value_model": make_classifier(make_tokenizer(), seed=1)}, "trains other parameters than this trainer"),
    ],
)
def test_a_checkpoint_of_another_run(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    trainer_of(tmp_path, callbacks=[StopAfter(1)]).train()
    other = trainer_of(tmp_path, **options)
    start = weights(other.actor_critic)
    with pytest.raises(CheckpointError, match=message):
        other.train(resume_from_checkpoint=True)
    assert_equal(weights(other.actor_critic), start)


def test_a_checkpoint_with_the_model_only(tmp_path: Path) -> None:
    trainer_of(tmp_path, callbacks=[StopAfter(1)], save_only_model=True).train()
    with pytest.raises(CheckpointError, match="save_only_model=True and cannot be resumed"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no whole checkpoint, none"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("writer", ["safetensors.torch.save_file", "torch.save", "json.dumps"])
def test_a_full_disk(tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear error; what was there is whole, and the run goes on from it when there is room."""
    whole = trainer_of(tmp_path / "whole")
    whole.train()

    class FullFrom(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            def fail(*args: Any, **kwargs: Any) -> None:
                raise OSError(28, "No space left on device")

            if state.global_step == 3:
                patch.setattr(writer, fail)

    with monkeypatch.context() as patch:
        full = trainer_of(tmp_path / "full", callbacks=[FullFrom()], log_trajectories=writer != "json.dumps")
        message = r"checkpoint-3 could not be written: .*No space.*checkpoint-2 is as it was"
        with pytest.raises(CheckpointError, match=message):
            full.train()
    assert sorted(p.name for p in (tmp_path / "full").glob("*") if p.is_dir()) == ["checkpoint-1", "checkpoint-2"]
    assert faults(tmp_path / "full" / "checkpoint-2") == []
    resumed = trainer_of(tmp_path / "full")
    resumed.train(resume_from_checkpoint=True)
    assert_equal(weights(resumed.actor_critic), weights(whole.actor_critic))


class Remember(TrainerCallback):
    """A user's callback that takes part."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(state.global_step)

    def save_state(self, directory: str) -> None:
        (Path(directory) / "seen.json").write_text(json.dumps(self.seen))

    def load_state(self, directory: str) -> None:
        self.seen = json.loads((Path(directory) / "seen.json").read_text())


def test_callbacks_with_a_state_of_their_own(tmp_path: Path) -> None:
    trainer_of(tmp_path, callbacks=[Remember(), StopAfter(2)]).train()
    remember = Remember()
    trainer_of(tmp_path, callbacks=[remember]).train(resume_from_checkpoint=True)
    assert remember.seen == [1, 2, 3, 4, 5]


class Terminate(TrainerCallback):
    """SIGTERM to its own process in the middle of an update."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.update - 1:
            self.update = -1  # the second signal would be the last
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_leaves(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    before = signal.getsignal(signal.SIGTERM)
    told = trainer_of(tmp_path / "told", callbacks=[Terminate(2)], save_strategy="no")
    with pytest.raises(SystemExit) as left:
        told.train()
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert [p.name for p in (tmp_path / "told").glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = trainer_of(tmp_path / "told")
    resumed.train(resume_from_checkpoint=True)
    assert_equal(weights(resumed.actor_critic), weights(whole.actor_critic))


# SIGKILL


class Kill(TrainerCallback):
    """Ends its process, without a chance to clean up, at the n-th occurrence of a moment."""

    def __init__(self, moment: str, count: int) -> None:
        self.moment, self.count = moment, count

    def at(self, moment: str) -> None:
        self.count -= moment == self.moment
        if self.count == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_phase(self, phase: str, detail: str = "") -> None:
        self.at(phase)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.at("optimizer step")

    def save_state(self, directory: str) -> None:
        self.at("save")

    def load_state(self, directory: str) -> None:
        self.at("restore")


def train_and_die(folder: str, kind: str, moment: str, count: int) -> None:
    """Runs in a process of its own; goes on from the newest checkpoint, if there is one."""
    from trl_mise import checkpoints, resume, trajectory_log

    torch.set_num_threads(1)
    kill = Kill(moment, count)
    for module, name in ((checkpoints, "_sync"), (resume, "rotate"), (trajectory_log, "trajectory_record")):
        real = getattr(module, name)

        def watched(*args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
            kill.at(name)
            return real(*args, **kwargs)

        setattr(module, name, watched)
    trainer = trainer_of(Path(folder), kind, callbacks=[kill], total_episodes=8 * 2 * (DEATHS + 1))
    started = any(Path(folder).glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=started)
    torch.save(result(trainer, Path(folder)), Path(folder) / "result.pt")


DEATHS = 10
# How often each comes in an update, at least. A run is killed within two updates, so it lasts for all its deaths.
MOMENTS = {
    **{"rollout": 3, "scoring": 1, "update": 1, "optimizer step": 4, "calibrate": 1, "trajectory_record": 8},
    **{"save": 1, "_sync": 10, "rotate": 1, "restore": 1},
}


def killed_and_resumed(folder: Path, kind: str, seed: int, deaths: int) -> tuple[dict[str, Any], list[str]]:
    """What a run leaves that was killed so many times at random moments, and where it was killed."""
    # The server imports everything once, and finds it by this: Python 3.11 does not tell it our sys.path.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_resume"])
    rng, died = random.Random(seed), []
    while True:
        moment, count = "never", 1
        if len(died) < deaths:
            moment = rng.choice(list(MOMENTS))
            count = rng.randint(1, 2 * MOMENTS[moment]) if moment != "restore" else 1
            if moment == "restore" and not any(folder.glob("checkpoint-*")):
                continue  # nothing to restore yet
        process = context.Process(target=train_and_die, args=(str(folder), kind, moment, count))
        process.start()
        process.join()
        if process.exitcode == 0 and (folder / "result.pt").exists():
            return torch.load(folder / "result.pt", weights_only=False), died
        assert process.exitcode == -signal.SIGKILL, f"it should have been killed at {moment}, not have failed"
        died.append(f"{moment} {count}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """By kind, of a process of its own as well: its random states begin alike."""
    known: dict[str, Any] = {}

    def of(kind: str) -> dict[str, Any]:
        if kind not in known:
            known[kind], died = killed_and_resumed(tmp_path_factory.mktemp(f"whole-{kind}"), kind, 0, deaths=0)
            assert not died
        return known[kind]

    yield of


@pytest.mark.parametrize("kind", ["plain", "lora", "value model", "written"])
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_ten_random_moments(tmp_path: Path, kind: str, seed: int, uninterrupted: Any) -> None:
    run, died = killed_and_resumed(tmp_path, kind, seed, DEATHS)
    assert len(died) == DEATHS
    assert_equal(run, uninterrupted(kind))
