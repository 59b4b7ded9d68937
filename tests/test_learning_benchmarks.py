"""The learning benchmark's own parts: estimators, store, claims, rivals, GRPO's rollout. No run is judged here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from benchmarks.learning import report, runner, suites
from benchmarks.learning.__main__ import main
from benchmarks.learning.arms import ARMS
from benchmarks.learning.estimators import bootstrap_band, paired_ratios, summarise
from benchmarks.learning.grpo import GROUP, EpisodeRollout, train_grpo
from benchmarks.learning.rivals import PotentialShaping, ReturnDecomposition, ShuffledReturns, ShuffledSteps
from benchmarks.learning.runner import Cell, ResultStore, run_cells, settings_of
from benchmarks.learning.suites import CI, CLAIMS, FRESH_SEEDS, FULL, Claim, areas_of
from benchmarks.learning.tasks import TASKS
from trl_mise import MISEConfig
from trl_mise.calibration import CalibrationExample
from trl_mise.chat import ChatFormat
from trl_mise.envs import kitchen
from trl_mise.recipes import KitchenBase
from trl_mise.rollout import RolloutLimits
from trl_mise.tiny import MemoisedFormat, build_policy, build_tokenizer
from trl_mise.types import HindsightScores
from trl_mise.warm_start import scripted_rollouts

BASE = KitchenBase(stations=3, values=2)
TOKENIZER = build_tokenizer([*kitchen.vocabulary(3, 2), "judge", "good", "bad"])
CHAT = ChatFormat(TOKENIZER)


def noisy(env: Any, rng: Any) -> str:
    return kitchen.noisy_action(env, rng, 0.6)


def episodes(number: int = 24, seed: int = 0) -> Any:
    rows = kitchen.make_tasks("train", number, seed=seed)
    chat = MemoisedFormat(TOKENIZER)
    return scripted_rollouts(BASE.environment_factory(), rows, noisy, chat, BASE.limits, judge=kitchen.judge_step)


class TestEstimators:
    def test_bootstrap_covers_as_often_as_it_says(self) -> None:
        """Nearly 95 of 100 bands of 30 normal samples hold the mean; of 6 only about 89, as the docstring says."""
        rng = np.random.default_rng(0)

        def coverage(size: int) -> float:
            bands = [bootstrap_band(rng.normal(3.0, 2.0, size), draws=500, seed=i) for i in range(400)]
            return float(np.mean([low <= 3.0 <= high for low, high in bands]))

        assert coverage(30) == pytest.approx(0.94, abs=0.03)
        assert coverage(6) == pytest.approx(0.87, abs=0.05)

    def test_bootstrap_of_curves_is_that_of_every_point(self) -> None:
        curves = np.random.default_rng(1).normal(size=(5, 7))
        low, high = bootstrap_band(curves)
        assert low.shape == high.shape == (7,) and (low <= curves.mean(0)).all() and (curves.mean(0) <= high).all()
        one_low, one_high = bootstrap_band(curves[:, 2])
        assert one_low == low[2] and one_high == high[2]

    def test_a_single_run_is_its_own_band(self) -> None:
        assert bootstrap_band(np.array([0.4])) == (0.4, 0.4)

    @pytest.mark.parametrize("samples, level", [(np.zeros((0, 3)), 0.95), (np.zeros(3), 1.0)])
    def test_bad_input(self, samples: np.ndarray, level: float) -> None:
        with pytest.raises(ValueError, match="bootstrap_band"):
            bootstrap_band(samples, level=level)

    def test_summary_golden(self) -> None:
        curves = [[0.0] * 10 + [1.0] * 10, [0.0] * 20, [0.5] * 20]
        summary = summarise(curves)
        assert (summary.seeds, summary.auc, summary.worst, summary.median) == (3, pytest.approx(1 / 3), 0.0, 0.5)
        assert summary.final == pytest.approx(0.5) and summary.low <= summary.auc <= summary.high

    def test_paired_ratios(self) -> None:
        assert paired_ratios({0: 0.6, 1: 0.2, 2: 0.0, 4: 1.0}, {0: 0.3, 1: 0.0, 2: 0.0, 3: 1.0}) == {
            0: pytest.approx(2.0),
            1: float("inf"),
            2: 1.0,
        }


def fake_run(task: str, arm: str, seed: int, curve: list[float], **settings: Any) -> dict[str, Any]:
    return {
        "task": task,
        "arm": arm,
        "seed": seed,
        "seconds": 1.0,
        "machine": "a machine",
        "settings": {**settings_of(Cell(task, arm.split()[0], seed)), **settings},
        "curves": {"env/success": curve, "hindsight/auroc": [None, *curve[1:]], "hindsight/brier": curve},
        "by_step": [0.1, 0.2],
        "reliability": [[30, 0.25, 0.1], [40, 0.72, 0.6]],
    }


class TestStore:
    cell = Cell("kitchen", "mise", 0)

    def test_a_finished_cell_is_found_and_replaced(self, tmp_path: Path) -> None:
        store = ResultStore(tmp_path / "new")
        assert store.find(self.cell) is None
        store.add(fake_run("kitchen", "mise", 0, [0.1]))
        store.add(fake_run("kitchen", "sparse", 0, [0.0]))
        store.add(fake_run("kitchen", "mise", 0, [0.2]))
        assert len(store.runs("kitchen")) == 2
        found = store.find(self.cell)
        assert found is not None and found["curves"]["env/success"] == [0.2]

    def test_other_settings_make_it_stale(self, tmp_path: Path) -> None:
        store = ResultStore(tmp_path)
        store.add(fake_run("kitchen", "mise", 0, [0.1], hindsight_coef=7.0))
        assert store.find(self.cell) is None
        # A setting that was not there when it ran does not matter, one that has gone neither.
        run = fake_run("kitchen", "mise", 0, [0.1], an_option_of_old=1)
        del run["settings"]["health_warnings"]
        store.add(run)
        assert store.find(self.cell) is not None

    def test_what_decides_the_result_is_in_the_settings(self) -> None:
        base = settings_of(self.cell)
        for other in (
            Cell("kitchen-1%", "mise", 0),
            Cell("kitchen", "uncalibrated", 0),
            Cell("kitchen", "flipped", 0),
            Cell("kitchen", "shuffled-returns", 0),
            Cell("kitchen", "grpo", 0),
            Cell("kitchen", "written", 0),
            Cell("kitchen", "mise", 0, {"learning_rate": 1.0}),
        ):
            assert settings_of(other) != base, other
        assert json.loads(json.dumps(base)) == base

    def test_only_what_is_missing_is_run_and_a_failure_loses_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from concurrent.futures import ThreadPoolExecutor

        ran: list[Cell] = []

        def run_cell(cell: Cell) -> dict[str, Any]:
            ran.append(cell)
            if cell.seed == 2:
                raise RuntimeError("out of luck")
            return fake_run(cell.task, cell.arm, cell.seed, [0.5])

        monkeypatch.setattr(runner, "run_cell", run_cell)
        monkeypatch.setattr(runner, "ProcessPoolExecutor", lambda jobs, **kwargs: ThreadPoolExecutor(jobs))
        store = ResultStore(tmp_path)
        store.add(fake_run("kitchen", "mise", 0, [0.5]))
        cells = [Cell("kitchen", "mise", seed) for seed in (0, 1, 2, 3, 1)]
        with pytest.raises(RuntimeError, match=r"1 of 3 runs failed.*seed=2"):
            run_cells(cells, store, jobs=1, say=lambda *args, **kwargs: None)
        assert [cell.seed for cell in ran] == [1, 2, 3]
        assert {run["seed"] for run in store.runs("kitchen")} == {0, 1, 3}

    def test_cells_of_one_policy_wait_for_the_one_that_makes_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TRL_MISE_CACHE", str(tmp_path))  # nothing has been made yet
        import threading
        from concurrent.futures import ThreadPoolExecutor

        now: list[Cell] = []
        first_two = threading.Barrier(2, timeout=60)
        started: list[tuple[str, int]] = []
        finished: set[tuple[str, int]] = set()
        lock = threading.Lock()

        def run_cell(cell: Cell) -> dict[str, Any]:
            with lock:
                now.append(cell)
                started.append((cell.arm, cell.seed))
                others = [other for other in now if other is not cell and other.seed == cell.seed]
                # The first of a seed is alone with its policy.
                assert not others or ("sparse", cell.seed) in finished
            if cell.arm == "sparse":
                first_two.wait()  # two different policies are made at the same time
            with lock:
                now.remove(cell)
                finished.add((cell.arm, cell.seed))
            return {"arm": cell.arm}

        monkeypatch.setattr(runner, "run_cell", run_cell)
        monkeypatch.setattr(runner, "ProcessPoolExecutor", lambda jobs, **kwargs: ThreadPoolExecutor(jobs))
        cells = [Cell("kitchen", arm, seed) for seed in (0, 1) for arm in ("sparse", "mise", "flipped")]
        results = {cell.key: outcome for cell, outcome in runner._in_parallel(cells, 2)}
        assert len(results) == 6 and not any(isinstance(outcome, Exception) for outcome in results.values())
        assert set(started[:2]) == {("sparse", 0), ("sparse", 1)}

    def test_a_variant_is_another_arm(self) -> None:
        assert Cell("shop", "sparse", 1, {"learning_rate": 1e-3}).key == ("shop", "sparse learning_rate=0.001", 1)


class TestClaims:
    runs = [
        fake_run("kitchen", arm, seed, [area] * 4)
        for arm, areas in {"mise": (0.6, 0.4), "sparse": (0.5, 0.5)}.items()
        for seed, area in enumerate(areas)
    ]

    @pytest.mark.parametrize(
        "options, holds",
        [
            ({"than": "sparse"}, False),  # equal is not better
            ({"than": "sparse", "ratio": 0.95}, True),
            ({"than": "sparse", "ratio": 1.1}, False),
            ({"than": "sparse", "ratio": 0.9, "worst_ratio": 0.85}, False),
            ({"than": "sparse", "ratio": 0.9, "worst_ratio": 0.8}, True),
            ({"median": 0.5, "worst": 0.35}, True),
            ({"median": 0.5, "worst": 0.45}, False),
            ({"median": 0.55}, False),
        ],
    )
    def test_check(self, options: dict[str, Any], holds: bool) -> None:
        claim = Claim("it works", "kitchen", "mise", **options)
        assert claim.check(areas_of(self.runs))[0] == holds

    def test_direction(self) -> None:
        areas = areas_of(self.runs)
        assert Claim("", "kitchen", "mise", "sparse", ratio=1.3).in_direction(areas)  # of few seeds no margin is asked
        worse = {**areas, ("kitchen", "mise"): {0: 0.4, 1: 0.4}}
        assert not Claim("", "kitchen", "mise", "sparse", ratio=1.3).in_direction(worse)
        assert not Claim("", "kitchen", "mise", "sparse").in_direction(worse)

    def test_the_table_hides_nothing(self) -> None:
        table = report.claims_table(self.runs)
        assert table.count("not run") == sum(suites.missing_for(claim, areas_of(self.runs)) for claim in CLAIMS)
        assert "**no**" in table and len(table.splitlines()) == len(CLAIMS) + 2

    def test_suites_name_what_exists(self) -> None:
        for cell in [*CI, *FULL]:
            assert cell.task in TASKS and cell.arm in ARMS
        areas = {(cell.task, cell.arm): {cell.seed: 0.5} for cell in FULL}
        assert not any(suites.missing_for(claim, areas) for claim in CLAIMS), "a claim about what is never run"

    def test_ci_fails_where_a_claim_no_longer_holds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def outcome(arm_values: dict[str, float]) -> None:
            runs = [fake_run(c.task, c.arm_name, c.seed, [arm_values.get(c.arm, 0.1)] * 4) for c in CI]
            monkeypatch.setattr("benchmarks.learning.__main__.run_cells", lambda *args, **kwargs: runs)
            main(["--suite", "ci"])

        outcome({"mise": 0.9})
        with pytest.raises(SystemExit, match="no longer so: kitchen: beats sparse PPO"):
            outcome({"mise": 0.9, "sparse": 0.95})


def test_the_report_is_written_from_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultStore(tmp_path / "results")
    for run in TestClaims.runs:
        store.add(run)
    store.add(fake_run("kitchen", "sparse learning_rate=0.001", 100, [0.3] * 4))
    for arm, success in (("mise", 0.875), ("sparse", 0.125)):
        store.add(fake_run("kitchen", arm, FRESH_SEEDS.start, [success] * 4))
    monkeypatch.setattr(report, "ResultStore", lambda: store)
    monkeypatch.setattr(report, "RESULTS_PAGE", tmp_path / "results.md")
    monkeypatch.setattr(report, "ASSETS", tmp_path)
    report.main()
    text = (tmp_path / "results.md").read_text()
    assert "| **MISE, default**" in text and "0.500" in text and "sparse learning_rate=0.001" in text
    assert "--tasks kitchen --arms sparse mise --seeds 0 1`" in text  # without the fresh ones
    before, fresh = text.split("## The same on seeds 6 to 11")
    assert "0.88" not in before and "AUC 0.88, sparse 0.12" in fresh.split("## kitchen")[0]
    assert "not run" in before and "not run" not in fresh
    assert (tmp_path / "results-kitchen.png").stat().st_size > 5000
    assert (tmp_path / "results-judges.png").exists()


class TestRivals:
    def judged(self, kind: type[Any], **options: Any) -> tuple[Any, Any, HindsightScores]:
        played = episodes().trajectories
        hindsight = kind(CHAT, prompt="judge {{ action }}", **options)
        rng = np.random.default_rng(0)
        good = rng.random(sum(t.num_steps for t in played))
        scores = HindsightScores(good, np.stack([good, 1 - good], axis=1), tuple(t.num_steps for t in played))
        return hindsight, played, scores

    def test_shuffled_steps_keep_the_praise_of_an_episode_and_lose_its_place(self) -> None:
        hindsight, _, scores = self.judged(ShuffledSteps)
        plain, _, _ = self.judged(type("Plain", (ShuffledSteps.__bases__[0],), {}))
        shuffled, straight = (scores.split(judge.normalise(scores)) for judge in (hindsight, plain))
        assert all(np.allclose(np.sort(a), np.sort(b)) for a, b in zip(shuffled, straight, strict=True))
        assert not np.allclose(np.concatenate(shuffled), np.concatenate(straight))

    def test_potential_shaping_adds_up_to_nothing(self) -> None:
        hindsight, _, scores = self.judged(PotentialShaping)
        plain, _, _ = self.judged(type("Plain", (ShuffledSteps.__bases__[0],), {}))
        shaped, straight = (scores.split(judge.normalise(scores)) for judge in (hindsight, plain))
        for ours, theirs in zip(shaped, straight, strict=True):
            assert ours.sum() == pytest.approx(0.0, abs=1e-9)
            np.testing.assert_allclose(ours[:-1], theirs[:-1])  # until the end it is the praise itself

    def test_return_decomposition_learns_which_steps_decide(self) -> None:
        """Three choices of two: after some updates right steps get more credit than wrong ones."""
        hindsight = ReturnDecomposition(CHAT, prompt="judge {{ action }}")
        hindsight.steps = 60
        model = build_policy(TOKENIZER, num_layers=1)
        for seed in range(4):
            hindsight.verdict_probs(model, episodes(120, seed=seed).trajectories)
        held_out = episodes(120, seed=99)
        probs = hindsight.verdict_probs(model, held_out.trajectories)
        good = np.array([word for judged in held_out.judged_good for word in judged])
        assert np.allclose(probs.sum(axis=1), 1) and (probs >= 0).all()
        assert probs[good, 0].mean() > probs[~good, 0].mean() + 0.02

    def test_return_decomposition_without_a_success_knows_nothing(self) -> None:
        hindsight = ReturnDecomposition(CHAT, prompt="judge {{ action }}")
        lost = [t for t in episodes(60).trajectories if not t.success]
        model = build_policy(TOKENIZER, num_layers=1)
        before = hindsight.verdict_probs(model, lost)
        start = [p.clone() for p in hindsight.net.parameters()]
        hindsight.verdict_probs(model, lost)
        assert all(torch.equal(a, b) for a, b in zip(start, hindsight.net.parameters(), strict=True))
        assert np.isfinite(before).all()

    def test_shuffled_returns_are_the_same_returns(self) -> None:
        played = episodes(80).trajectories
        examples = [CalibrationExample(t, np.full(t.num_steps, 0.5)) for t in played]
        callback = ShuffledReturns(seed=1)
        callback.buffer.add(examples)
        shuffled = callback._unit_returns(examples)
        straight = [t.episode_return for t in played]
        assert sorted(shuffled) == sorted(straight) and shuffled != straight


class OddEnv(kitchen.KitchenEnv):
    """Pays for an odd number of letters: an untrained policy sometimes wins too."""

    def step(self, action: str) -> Any:
        observation, _, done, truncated, info = super().step(action)
        self.letters = getattr(self, "letters", 0) * (self._step > 1) + len(action)
        return observation, float(done and self.letters % 2), done, truncated, info


class TestGRPO:
    limits = RolloutLimits(max_turns=3, max_new_tokens=3, max_episode_tokens=60)

    def test_it_trains_on_our_episodes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[dict[str, Any]] = []
        call = EpisodeRollout.__call__

        def watch(self: EpisodeRollout, prompts: Any, trainer: Any) -> dict[str, Any]:
            answer = call(self, prompts, trainer)
            seen.append({"prompts": list(prompts), **answer})
            return answer

        monkeypatch.setattr(EpisodeRollout, "__call__", watch)
        monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        # As from the cache: TRL loads the reference from where the model came from.
        build_policy(TOKENIZER, num_layers=1).save_pretrained(tmp_path / "start")
        model = LlamaForCausalLM.from_pretrained(tmp_path / "start")
        before = model.lm_head.weight.clone()
        defaults = {**TASKS["kitchen"].recipe(0).training_defaults(), "total_episodes": 64, "learning_rate": 1e-2}
        rows = kitchen.make_tasks("train", 64)
        odd = lambda: lambda: OddEnv(stations=3, values=2)  # noqa: E731
        recipe = type("Recipe", (), {"limits": self.limits, "environment_factory": staticmethod(odd)})
        history = train_grpo(model, TOKENIZER, recipe, rows, defaults, {}, str(tmp_path), seed=0)
        assert len(history) == len(seen) == 2 and all("env/success" in entry for entry in history)
        for batch in seen:
            # As many episodes as in a batch of the other arms, in groups of one task each.
            assert len(batch["prompts"]) == 32
            groups = [batch["prompts"][i : i + GROUP] for i in range(0, 32, GROUP)]
            assert all(len(set(group)) == 1 for group in groups) and len({group[0] for group in groups}) == 4
            for ids, mask, log_probs in zip(
                batch["completion_ids"], batch["env_mask"], batch["logprobs"], strict=True
            ):
                assert len(ids) == len(mask) == len(log_probs)
                assert 3 <= sum(mask) <= 9 and sum(mask) < len(mask)  # the environment's tokens are not trained on
        assert isinstance(model, nn.Module) and not torch.equal(before, model.lm_head.weight)

    def test_log_probs_are_the_policys(self) -> None:
        rollout = EpisodeRollout(BASE.environment_factory(), self.limits, temperature=1.0)
        model = build_policy(TOKENIZER, num_layers=1)
        trajectory = episodes(1).trajectories[0]
        start, end = trajectory.turns[0].action_span[0], trajectory.turns[-1].action_span[1]
        tokens = torch.tensor([trajectory.token_ids])
        plain = model(tokens).logits[0].log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])[start - 1 : end - 1, 0]
        found = rollout._log_probs(model, trajectory, start, end)
        torch.testing.assert_close(torch.tensor(found), plain.detach(), atol=1e-5, rtol=0)


def test_a_run_from_beginning_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small updates of every kind of arm; what they learn does not matter."""
    task = TASKS["kitchen"]
    base = replace(BASE, short_steps=1, full_steps=1, episodes=20, num_layers=1)
    small = replace(
        task,
        recipe=lambda seed: replace(task.recipe(seed), base=base, steps=1),
        rows=lambda _, seed: kitchen.make_tasks("train", 64, seed=seed),
        options={"total_episodes": 32, "per_device_train_batch_size": 8},
        writing_recipe=None,
    )
    monkeypatch.setitem(TASKS, "kitchen", small)
    monkeypatch.setenv("TRL_MISE_CACHE", str(tmp_path))
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    for arm in ("sparse", "mise", "oracle", "random", "shuffled-steps", "shuffled-returns", "potential", "grpo"):
        run = runner.run_cell(Cell("kitchen", arm, 0))
        assert len(run["curves"]["env/success"]) == 2, arm
        judged = arm not in ("sparse", "grpo")
        assert len(run["by_step"]) == (3 if judged else 0)
        assert sum(count for count, _, _ in run["reliability"]) == (32 if judged else 0)
        assert ResultStore(tmp_path).find(Cell("kitchen", arm, 0)) is None
        ResultStore(tmp_path).add(run)
        assert ResultStore(tmp_path).find(Cell("kitchen", arm, 0)) == json.loads(json.dumps(run))
    with pytest.raises(ValueError, match="'kitchen' has no policy that learned to write"):
        runner.run_cell(Cell("kitchen", "written", 0))


def test_settings_of_a_config_are_those_that_it_would_train_with() -> None:
    settings = settings_of(Cell("shop", "mise", 0))
    config = MISEConfig(**runner.options_of(Cell("shop", "mise", 0)), output_dir="unused")
    assert settings["hindsight_coef"] == config.hindsight_coef and settings["total_episodes"] == config.total_episodes
