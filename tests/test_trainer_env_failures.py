"""Episodes that the environment breaks: left out, counted, logged, and too many of them stop the run."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from trainer_fakes import LetterEnv, largest_difference, make_trainer, tasks, weights
from transformers import TrainerCallback
from worker_envs import FaultyTaskEnv, JavaTaskEnv
from worker_traces import descendants

from trl_mise.envs.base import EnvironmentFailure
from trl_mise.types import StopReason, Trajectory


class FragileEnv(LetterEnv):
    """Raises in the second step of some tasks, and in the reset of others."""

    bad_steps: frozenset[int] = frozenset()
    bad_resets: frozenset[int] = frozenset()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self._seed = seed
        if seed in self.bad_resets:
            raise ConnectionError("no server")
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        answer = super().step(action)
        if self._seed in self.bad_steps and len(self._said) == 2:
            raise ValueError("lost the thread")
        return answer


class BadStepEnv(FragileEnv):
    bad_steps = frozenset({3})


class BadResetEnv(FragileEnv):
    bad_resets = frozenset({3})


class HopelessEnv(FragileEnv):
    bad_resets = frozenset(range(16))


class Recorder(TrainerCallback):
    """Keeps what the callbacks are shown."""

    def __init__(self) -> None:
        self.updates: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, update: Any = None, **kwargs: Any) -> None:
        self.updates.append(update)


@pytest.mark.parametrize("factory", [BadStepEnv, BadResetEnv])
def test_the_update_goes_on_with_the_rest(tmp_path: Path, factory: type[FragileEnv]) -> None:
    """All sixteen tasks are played in two updates; one of them fails."""
    recorder = Recorder()
    trainer = make_trainer(tmp_path, environment_factory=factory, callbacks=[recorder], check_environment=False)
    before = weights(trainer.actor_critic)
    trainer.train()
    learned_from = [trajectory for update in recorder.updates for trajectory in update.trajectories]
    assert sorted(t.seed for t in learned_from) == [seed for seed in range(16) if seed != 3]
    assert not any(t.failed for t in learned_from)
    assert all(len(update.trajectories) == len(update.scores.num_steps) for update in recorder.updates)
    rates = [entry["env/error_rate"] for entry in trainer.state.log_history if "env/error_rate" in entry]
    assert sorted(rates) == [0.0, 1 / 8]
    assert largest_difference(before, weights(trainer.actor_critic)) > 0

    lines = (tmp_path / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    (failed,) = (record for record in records if record["stop_reason"] == "env_error")
    assert len(records) == 16 and failed["seed"] == 3
    assert ("lost the thread" if factory is BadStepEnv else "no server") in failed["error"]
    assert all("score" in turn for record in records if record is not failed for turn in record["turns"])


def test_the_update_is_that_of_the_other_episodes(tmp_path: Path) -> None:
    """Not a trace of the failed episode: the same weights as if the seven others had been all."""

    def trained(failed: bool) -> dict[str, Any]:
        trainer = make_trainer(tmp_path, environment_factory=LetterEnv, total_episodes=8, num_mini_batches=1)
        collect = trainer.collect

        def with_a_failure(rows: Any, **kwargs: Any) -> list[Trajectory]:
            episodes = collect(rows, **kwargs)
            broken = Trajectory(episodes[3].token_ids, episodes[3].turns[:1], StopReason.ENV_ERROR, error="broken")
            return [*episodes[:3], *([broken] if failed else []), *episodes[4:]]

        trainer.collect = with_a_failure  # type: ignore[method-assign]
        trainer.train()
        return weights(trainer.actor_critic)

    assert largest_difference(trained(failed=False), trained(failed=True)) == 0.0


def test_an_environment_that_raised_is_made_anew(tmp_path: Path) -> None:
    made: list[FragileEnv] = []

    def factory() -> FragileEnv:
        made.append(BadStepEnv())
        return made[-1]

    make_trainer(tmp_path, environment_factory=factory, num_envs=2, check_environment=False).train()
    assert len(made) == 3, "two side by side, and one in the place of the one that raised"
    assert all(env.closed for env in made)


def test_too_many_failures_stop_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, environment_factory=HopelessEnv, check_environment=False, max_env_error_rate=1.0)
    message = r"8 of 8 episodes.*max_env_error_rate=1.0.*'seed': \d+.*reset: ConnectionError: no server"
    with pytest.raises(EnvironmentFailure, match=message):
        trainer.train()


@pytest.mark.parametrize(("rate", "stops"), [(0.0, True), (0.12, True), (0.125, False), (1.0, False)])
def test_the_rate_is_a_share_of_the_batch(tmp_path: Path, rate: float, stops: bool) -> None:
    trainer = make_trainer(tmp_path, environment_factory=BadResetEnv, check_environment=False, max_env_error_rate=rate)
    if not stops:
        trainer.train()
        return
    with pytest.raises(EnvironmentFailure, match=r"1 of 8 episodes .*mend the environment, or raise"):
        trainer.train()


def test_evaluation_counts_failures_and_leaves_them_out(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, environment_factory=BadResetEnv, check_environment=False)
    metrics = trainer.evaluate(tasks(16))
    healthy = make_trainer(tmp_path, environment_factory=LetterEnv).evaluate(
        tasks(16).select([*range(3), *range(4, 16)])
    )
    assert metrics["eval_error_rate"] == 1 / 16 and metrics["eval_episodes"] == 16
    assert metrics["eval_success"] == healthy["eval_success"]


def test_evaluation_stops_too(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, environment_factory=HopelessEnv, check_environment=False)
    with pytest.raises(EnvironmentFailure, match="4 of 4 episodes"):
        trainer.evaluate(tasks(4))


@pytest.mark.parametrize("envs_per_worker", [1, 2])
def test_worker_processes_that_die_hang_and_talk_nonsense(tmp_path: Path, envs_per_worker: int) -> None:
    """Six of sixteen tasks end in a misdeed; the run ends normally, all are accounted for, and no process is left."""
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path,
        environment_factory=FaultyTaskEnv,
        callbacks=[recorder],
        env_isolation="process",
        env_timeout=3.0,
        envs_per_worker=envs_per_worker,
        max_env_error_rate=0.99,
        num_envs=4,
    )
    processes: list[int] = []
    collect = trainer.collect

    def noted(*args: Any, **kwargs: Any) -> list[Trajectory]:
        episodes = collect(*args, **kwargs)
        workers = trainer._environments._workers._workers  # type: ignore[union-attr]
        processes.extend(worker._process._popen.pid for worker in workers if worker._process is not None)
        return episodes

    trainer.collect = noted  # type: ignore[method-assign]
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()]
    failed = {record["seed"] for record in records if record["stop_reason"] == "env_error"}
    misdeeds = {*FaultyTaskEnv.IN_STEP, *FaultyTaskEnv.IN_RESET}
    assert len(records) == 16 and failed >= misdeeds
    if envs_per_worker == 1:
        assert failed == misdeeds
    assert sorted(t.seed for update in recorder.updates for t in update.trajectories) == sorted(
        set(range(16)) - failed
    )
    assert trainer.state.global_step == 2 and processes
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


@pytest.mark.parametrize("envs_per_worker", [1, 2])
def test_java_killed_in_mid_episode(tmp_path: Path, envs_per_worker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of sixteen episodes lose their simulator; all others count, and neither Python nor Java is left."""
    pytest.importorskip("scienceworld", reason='needs pip install "trl-mise[scienceworld]"')
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # workers are known by where they live
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path,
        environment_factory=JavaTaskEnv,
        callbacks=[recorder],
        envs_per_worker=envs_per_worker,
        num_envs=2,
        check_environment=False,
        max_env_error_rate=0.5,
    )
    running: list[set[str]] = []
    collect = trainer.collect

    def noted(*args: Any, **kwargs: Any) -> list[Trajectory]:
        episodes = collect(*args, **kwargs)
        running.append({Path(f"/proc/{pid}/comm").read_text().strip() for pid in descendants(tmp_path)})
        return episodes

    trainer.collect = noted  # type: ignore[method-assign]
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()]
    failed = {record["seed"]: record["error"] for record in records if record["stop_reason"] == "env_error"}
    assert len(records) == 16 and set(failed) >= JavaTaskEnv.KILLED
    assert all("Java process was killed by SIGKILL" in failed[seed] for seed in JavaTaskEnv.KILLED)
    if envs_per_worker == 1:
        assert set(failed) == JavaTaskEnv.KILLED
    assert sorted(t.seed for update in recorder.updates for t in update.trajectories) == sorted(
        set(range(16)) - set(failed)
    )
    assert trainer.state.global_step == 2 and all("java" in names for names in running)
    assert descendants(tmp_path) == []
