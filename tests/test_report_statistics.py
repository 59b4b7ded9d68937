"""What a report says of scores, against values that are worked out by hand."""

import math
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from synthetic_run import Shape, Shop, training_episodes, write_lines

from trl_mise.metrics import ece, episode_metrics, hindsight_metrics, score_by_step
from trl_mise.report_statistics import (
    ReliabilityBin,
    StepMean,
    as_trajectory,
    histogram,
    judge_summary,
    means_by_step,
    metrics_of_episodes,
    moving_average,
    reliability,
    thinned,
)
from trl_mise.run_data import EpisodeRecord, StepRecord, read_run
from trl_mise.types import HindsightScores


def step(score: float | None, probs: Sequence[float] = (), valid: bool = True) -> StepRecord:
    return StepRecord("o", "a", 0.0, valid, score, tuple(probs), None, None, None)


def episode(scores: Sequence[float | None], won: bool, **changes: Any) -> EpisodeRecord:
    steps = tuple(step(score, () if score is None else (score, 1 - score)) for score in scores)
    values: dict[str, Any] = {
        "kind": "training",
        "split": "",
        "update": 1,
        "task": {},
        "seed": None,
        "instruction": "",
        "steps": steps,
        "final_observation": "",
        "episode_return": float(won),
        "success": won,
        "stop_reason": "terminated",
        "error": None,
    }
    return EpisodeRecord(**(values | changes))


def test_reliability_by_hand() -> None:
    scores = np.array([0.05, 0.0, 0.31, 0.39, 0.35, 1.0])
    won = np.array([False, True, True, True, False, True])
    low, middle, high = reliability(scores, won)
    assert low == ReliabilityBin(0.0, 0.1, 2, 0.025, 0.5)
    assert (middle.low, middle.high, middle.count) == (0.3, 0.4, 3)
    assert (middle.score, middle.won) == (pytest.approx(0.35), pytest.approx(2 / 3))
    assert high == ReliabilityBin(0.9, 1.0, 1, 1.0, 1.0), "a score of 1 belongs to the last bin"
    assert reliability(np.zeros(0), np.zeros(0)) == []


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_what_is_drawn_adds_up_to_the_ece(rows: list[tuple[float, bool]], bins: int) -> None:
    scores, won = np.array([s for s, _ in rows]), np.array([w for _, w in rows])
    drawn = reliability(scores, won, bins)
    assert sum(b.count for b in drawn) == len(rows)
    gap = sum(b.count / len(rows) * abs(b.score - b.won) for b in drawn)
    assert gap == pytest.approx(ece(scores, won, bins), abs=1e-9)


def test_histogram_by_hand() -> None:
    assert histogram(np.array([0.0, 0.24, 0.25, 0.5, 0.99, 1.0]), bins=4) == [2, 1, 1, 2]
    assert histogram(np.zeros(0), bins=3) == [0, 0, 0]


def test_means_by_step_by_hand() -> None:
    scores = [np.array([0.2, np.nan, 0.6]), np.array([0.4])]
    assert means_by_step(scores) == [StepMean(0, 0, pytest.approx(0.3), 2), StepMean(2, 2, pytest.approx(0.6), 1)]
    pairs = means_by_step([np.array([0.0, 1.0, 0.5, 0.7, 0.2])], most=3)
    assert pairs == [StepMean(0, 1, 0.5, 2), StepMean(2, 3, pytest.approx(0.6), 2), StepMean(4, 4, 0.2, 1)]
    assert means_by_step([]) == []


def test_means_by_step_are_those_that_the_trainer_logs() -> None:
    rng = np.random.default_rng(0)
    scores = [rng.random(n) for n in (3, 40, 17)]
    assert {m.first: m.mean for m in means_by_step(scores)} == pytest.approx(score_by_step(scores))


def test_judge_summary_by_hand() -> None:
    won = [episode([0.9, 0.7], True), episode([None, 0.4], True)]
    lost = [episode([0.5], False), episode([0.2, 0.4], False)]
    ignored = [episode([None], True), episode([], False), episode([0.1], False, stop_reason="env_error")]
    found = judge_summary([*won, *lost, *ignored], utilities=(1.0, 0.0))
    # episode scores: .8 .4 (won), .5 .3 (lost); of four pairs three are right
    assert (found["episodes"], found["won"], found["steps"]) == (4, 2, 6)
    assert found["auroc"] == pytest.approx(0.75) and found["score_mean"] == pytest.approx(0.5)
    assert found["score_gap"] == pytest.approx(0.6 - 0.4)
    assert found["brier"] == pytest.approx((0.2**2 + 0.6**2 + 0.5**2 + 0.3**2) / 4)
    assert found["ece"] == pytest.approx((0.2 + 0.6 + 0.5 + 0.3) / 4)
    assert found["within_episode_spread"] == pytest.approx((0.1 + 0 + 0 + 0.1) / 4)
    mean = np.mean([0.9, 0.7, 0.4, 0.5, 0.2, 0.4])
    proxy = math.e / (math.e + 1)
    kl = mean * math.log(mean / proxy) + (1 - mean) * math.log((1 - mean) / (1 - proxy))
    assert found["kl_to_proxy"] == pytest.approx(kl)


def test_judge_summary_leaves_out_what_cannot_be_said() -> None:
    assert judge_summary([]) == {"episodes": 0.0, "won": 0.0, "steps": 0.0}
    all_won = judge_summary([episode([0.5], True), episode([0.6], True, episode_return=3.0)])
    assert "auroc" not in all_won and "score_gap" not in all_won and "brier" not in all_won
    assert "kl_to_proxy" not in all_won and all_won["ece"] == pytest.approx(0.45)
    mixed = [episode([0.5], True, steps=(step(0.5), step(0.5, (0.5, 0.5))))]
    assert "mutual_information" not in judge_summary(mixed), "a step without probabilities"


def test_an_updates_measures_are_those_that_the_trainer_logs(tmp_path: Any) -> None:
    shape = Shape(updates=3, batch=40, turns=6, shortest=2)
    *_, lines = training_episodes(shape, Shop(0))
    write_lines(tmp_path / "trajectories.jsonl", lines)
    records = read_run(tmp_path).training
    played = [as_trajectory(record) for record in records]
    assert any(t.failed for t in played) and any(t.success for t in played) and not all(t.success for t in played)
    probs = np.concatenate([[s.verdict_probs for s in r.steps] for r in records if r.steps])
    scores = HindsightScores(np.concatenate([r.scores for r in records]), probs, tuple(len(r.steps) for r in records))
    logged = {**episode_metrics(played), **hindsight_metrics(scores, played, np.array([1.0, 0.0]))}
    found = metrics_of_episodes(records, (1.0, 0.0))
    ours_alone = {name for name in logged if name.startswith("hindsight/by_step") or name == "env/action_tokens"}
    assert set(logged) - set(found) == ours_alone
    assert found == pytest.approx({name: logged[name] for name in found}, abs=1e-6)


def test_moving_average_by_hand() -> None:
    points = [(1.0, 2.0), (2.0, 4.0), (5.0, 9.0), (6.0, -1.0)]
    assert moving_average(points, 2) == [(1.0, 2.0), (2.0, 3.0), (5.0, 6.5), (6.0, 4.0)]
    assert moving_average(points, 1) == points
    assert moving_average([], 3) == []


def test_thinned_by_hand() -> None:
    points = [(float(x), float(x * x)) for x in range(5)]
    assert thinned(points, 5) == points
    assert thinned(points, 3) == [(1.0, 0.5), (3.0, 6.5), (4.0, 16.0)]
    assert thinned([], 3) == []
