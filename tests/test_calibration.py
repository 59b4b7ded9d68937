"""Replay and post-hoc maps: balance, golden numbers, exact round trips. Losses: test_calibration_losses.py."""

import builtins
import importlib.util
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_mise.calibration import (
    AffineCalibrator,
    CalibrationExample,
    IsotonicCalibrator,
    PlattCalibrator,
    ReplayBuffer,
    make_calibrator,
    step_pairs,
)
from trl_mise.serialization import trajectory_from_dict, trajectory_to_dict
from trl_mise.types import StopReason, Trajectory, Turn


def example(won, *, steps=2, name=0, stop=StopReason.TERMINATED):
    turns = tuple(Turn("o", "a", float(won and t == steps - 1), (3 * t, 3 * t + 2), 3 * t + 3) for t in range(steps))
    trajectory = Trajectory(tuple(range(3 * steps)), turns, stop, instruction=str(name), seed=name)
    return CalibrationExample(trajectory, np.linspace(0.2, 0.7, steps), np.linspace(0.5, 0.4, steps))


# --- serialization -----------------------------------------------------------------------------------------------

any_text = st.text(st.characters(), max_size=8)  # lone surrogates included: byte-level decoders make them
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
spans = st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda pair: tuple(sorted(pair)))
turn_records = st.builds(
    Turn,
    any_text,
    any_text,
    st.floats(allow_nan=False, allow_infinity=False),
    spans,
    st.integers(0, 100),
    st.booleans(),
    st.booleans(),
)
trajectories = st.builds(
    Trajectory,
    st.lists(st.integers(0, 2**31), max_size=8).map(tuple),
    st.lists(turn_records, max_size=4).map(tuple),
    st.sampled_from(StopReason),
    any_text,
    any_text,
    st.dictionaries(any_text, json_values, max_size=3),
    st.none() | st.integers(),
    st.none() | st.booleans(),
)


@settings(max_examples=80)
@given(trajectories)
def test_trajectory_round_trip_through_json_is_exact(trajectory):
    state = json.loads(json.dumps(trajectory_to_dict(trajectory)))
    again = trajectory_from_dict(state)
    assert again == trajectory
    assert again.stop_reason is trajectory.stop_reason
    assert trajectory_to_dict(again) == state
    assert trajectory_from_dict(state | {"scores": [0.5], "advantages": []}) == trajectory  # more keys in the jsonl


def test_numpy_values_become_plain_ones():
    turn = Turn("o", "a", np.float32(0.5), (np.int64(0), np.int64(2)), np.int64(2), action_valid=np.bool_(False))
    task = {"seed": np.int64(3), "where": (1, 2), "x": np.array([1.5, 2.5])}
    trajectory = Trajectory((np.int64(4), 5), (turn,), StopReason.MAX_TURNS, task=task, won=np.bool_(True))
    state = json.loads(json.dumps(trajectory_to_dict(trajectory)))
    assert state["task"] == {"seed": 3, "where": [1, 2], "x": [1.5, 2.5]}
    again = trajectory_from_dict(state)
    assert again.turns[0] == Turn("o", "a", 0.5, (0, 2), 2, action_valid=False)
    assert again.token_ids == (4, 5) and again.won is True


def test_what_json_cannot_hold_is_named():
    trajectory = Trajectory((), (), StopReason.TERMINATED, task={"items": [{"when": {1, 2}}]})
    with pytest.raises(TypeError, match=r"task\['items'\]\[0\]\['when'\] is \{1, 2\} \(set\)"):
        trajectory_to_dict(trajectory)
    with pytest.raises(TypeError, match=r"task\['m'\]"):
        trajectory_to_dict(Trajectory((), (), StopReason.TERMINATED, task={"m": {1: "integer key"}}))
    with pytest.raises(ValueError, match="'stop_reason'"):
        trajectory_from_dict({"token_ids": [], "turns": []})


# --- replay ------------------------------------------------------------------------------------------------------


def test_buffer_is_balanced_alternates_and_does_not_repeat():
    buffer = ReplayBuffer()
    buffer.add(example(won=i % 4 == 0, name=i) for i in range(40))
    batch = buffer.sample_balanced(20, np.random.default_rng(0))
    assert [drawn.success for drawn in batch] == [True, False] * 10
    seeds = [drawn.trajectory.seed for drawn in batch]
    assert len(set(seeds)) == 20  # ten successes exist and ten are wanted: each exactly once
    assert set(seeds[::2]) == set(range(0, 40, 4))


def test_a_small_class_is_used_up_before_it_repeats():
    buffer = ReplayBuffer()
    buffer.add(example(won=i < 3, name=i) for i in range(30))
    batch = buffer.sample_balanced(17, np.random.default_rng(1))  # 8 of each
    assert sum(drawn.success for drawn in batch) == 8 and len(batch) == 16
    counts = np.bincount([drawn.trajectory.seed for drawn in batch], minlength=30)
    assert sorted(counts[:3]) == [2, 3, 3] and counts[3:].max() == 1


def test_no_batch_before_the_first_success_or_failure():
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer()
    assert buffer.sample_balanced(4, rng) == []
    buffer.add([example(won=False)] * 5)
    assert buffer.sample_balanced(4, rng) == []
    buffer.add([example(won=True)])
    assert [drawn.success for drawn in buffer.sample_balanced(4, rng)] == [True, False, True, False]


def test_sampling_depends_on_the_generator_only():
    buffer = ReplayBuffer()
    buffer.add(example(won=i % 2 == 0, name=i) for i in range(50))
    first, second, other = (buffer.sample_balanced(10, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == second != other


def test_capacity_drops_the_oldest_and_errors_are_not_kept():
    buffer = ReplayBuffer(capacity=3)
    buffer.add(example(won=False, name=i) for i in range(5))
    buffer.add([example(won=False, name=9, stop=StopReason.ENV_ERROR), example(won=False, steps=0, name=10)])
    assert [kept.trajectory.seed for kept in buffer.examples] == [2, 3, 4]
    assert len(buffer) == buffer.capacity == 3


@settings(max_examples=25)
@given(trajectories, st.data())
def test_buffer_round_trip_through_json_is_exact(trajectory, data):
    unit = st.lists(st.floats(0, 1), min_size=trajectory.num_steps, max_size=trajectory.num_steps).map(np.array)
    buffer = ReplayBuffer()
    buffer.add([CalibrationExample(trajectory, data.draw(unit), data.draw(st.none() | unit)), example(won=True)])
    again = ReplayBuffer()
    again.load_state_dict(json.loads(json.dumps(buffer.state_dict())))
    assert len(again) == len(buffer)
    for left, right in zip(again.examples, buffer.examples, strict=True):
        assert left.trajectory == right.trajectory
        np.testing.assert_array_equal(left.scores, right.scores)
        assert (left.reference_scores is None) == (right.reference_scores is None)
        if right.reference_scores is not None:
            np.testing.assert_array_equal(left.reference_scores, right.reference_scores)


def test_restored_buffer_draws_the_same_batch():
    buffer = ReplayBuffer()
    buffer.add(example(won=i % 3 == 0, name=i) for i in range(30))
    again = ReplayBuffer()
    again.load_state_dict(json.loads(json.dumps(buffer.state_dict())))
    draws = [
        [drawn.trajectory.seed for drawn in each.sample_balanced(8, np.random.default_rng(5))]
        for each in (buffer, again)
    ]
    assert draws[0] == draws[1]
    small = ReplayBuffer(capacity=4)
    small.load_state_dict(buffer.state_dict())
    assert [kept.trajectory.seed for kept in small.examples] == [26, 27, 28, 29]


def test_bad_examples_and_sizes_are_refused():
    trajectory = example(won=True).trajectory
    with pytest.raises(ValueError, match=r"reference_scores has shape \(3,\) but the episode has 2 steps"):
        CalibrationExample(trajectory, np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\], got \[-1.0, 2.0\]"):
        CalibrationExample(trajectory, np.array([-1.0, 2.0]))
    with pytest.raises(ValueError, match="n must be at least 2"):
        ReplayBuffer().sample_balanced(1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="capacity must be at least 2"):
        ReplayBuffer(capacity=1)


def test_examples_own_their_scores():
    batch = np.array([0.1, 0.2, 0.3, 0.4])
    kept = CalibrationExample(example(won=True).trajectory, batch[:2])
    batch[:] = 0.9
    np.testing.assert_array_equal(kept.scores, [0.1, 0.2])


def test_step_pairs_repeat_the_return():
    scores, returns = step_pairs([example(won=True, steps=3), example(won=False, steps=2)])
    np.testing.assert_allclose(scores, [0.2, 0.45, 0.7, 0.2, 0.7])
    np.testing.assert_array_equal(returns, [1, 1, 1, 0, 0])


# --- post-hoc maps -----------------------------------------------------------------------------------------------

needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
ISOTONIC = pytest.param("isotonic", marks=needs_sklearn)
NAMES = ("identity", "affine", "platt", ISOTONIC)


def noisy_judge(num=400, seed=0):
    """Scores that are over-confident by a factor of two in log-odds, and outcomes drawn from the true probability."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=num) * 2
    return 1 / (1 + np.exp(-z)), (rng.uniform(size=num) < 1 / (1 + np.exp(-(0.5 * z - 0.7)))).astype(float)


@pytest.mark.parametrize("name", NAMES)
def test_unfitted_map_is_the_identity(name):
    scores = np.array([0.0, 0.1, 0.5, 0.99, 1.0])
    np.testing.assert_allclose(make_calibrator(name)(scores), scores, atol=1.1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_map_stays_in_the_unit_interval_and_survives_json(name):
    scores, returns = noisy_judge()
    fitted, again = make_calibrator(name), make_calibrator(name)
    fitted.fit(scores, returns)
    grid = np.linspace(0, 1, 101)
    assert fitted(grid).min() >= 0 and fitted(grid).max() <= 1
    again.load_state_dict(json.loads(json.dumps(fitted.state_dict())))
    np.testing.assert_array_equal(again(grid), fitted(grid))
    assert fitted(grid.reshape(1, -1)).shape == (1, 101)


@pytest.mark.parametrize("name", ["affine", "platt", ISOTONIC])
def test_fit_lowers_the_brier_score_of_an_overconfident_judge(name):
    scores, returns = noisy_judge()
    fitted = make_calibrator(name)
    fitted.fit(scores, returns)
    fresh_scores, fresh_returns = noisy_judge(seed=1)
    before = np.mean((fresh_scores - fresh_returns) ** 2)
    assert np.mean((fitted(fresh_scores) - fresh_returns) ** 2) < before - 0.02


def test_affine_recovers_a_line_and_clips():
    scores = np.array([0.1, 0.4, 0.5, 0.9])
    affine = AffineCalibrator()
    affine.fit(scores, 0.5 * scores + 0.25)
    assert (affine.slope, affine.intercept) == pytest.approx((0.5, 0.25))
    affine.fit(np.array([0.4, 0.6]), np.array([0.0, 1.0]))  # slope 5, intercept -2
    np.testing.assert_allclose(affine(np.array([0.0, 0.5, 1.0])), [0.0, 0.5, 1.0], atol=1e-12)


def test_affine_with_constant_scores_gives_the_mean_return():
    affine = AffineCalibrator()
    affine.fit(np.full(4, 0.3), np.array([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(affine(np.array([0.0, 0.3, 1.0])), 0.25)


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -0.7), (2.0, 1.0), (-0.8, 0.3), (1.0, 0.0)])
def test_platt_recovers_known_parameters_from_soft_targets(slope, intercept):
    z = np.linspace(-4, 4, 400)
    platt = PlattCalibrator(strength=1e-8)
    platt.fit(1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-(slope * z + intercept))))
    assert (platt.slope, platt.intercept) == pytest.approx((slope, intercept), abs=1e-6)


def test_platt_is_at_the_minimum_of_its_objective():
    scores, returns = noisy_judge()
    platt = PlattCalibrator()
    platt.fit(scores, returns)
    z = np.log(scores / (1 - scores))
    weights = torch.tensor([platt.slope, platt.intercept], dtype=torch.float64, requires_grad=True)
    logits = weights[0] * torch.tensor(z) + weights[1]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(returns), reduction="sum")
    loss = loss + 0.5 * ((weights - torch.tensor([1.0, 0.0])) ** 2).sum()
    loss.backward()
    np.testing.assert_allclose(weights.grad.numpy(), 0, atol=1e-8)


def test_platt_survives_separable_and_saturated_scores():
    platt = PlattCalibrator()
    platt.fit(np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0, 0.0]))  # a flipped, fully certain judge
    assert np.isfinite([platt.slope, platt.intercept]).all() and platt.slope < 0
    assert platt(np.array([0.0]))[0] > 0.9 > 0.1 > platt(np.array([1.0]))[0]


@needs_sklearn
def test_isotonic_is_monotone_and_golden():
    scores, returns = noisy_judge()
    isotonic = IsotonicCalibrator()
    isotonic.fit(scores, returns)
    assert (np.diff(isotonic(np.linspace(0, 1, 500))) >= 0).all()
    # the two middle ones are in the wrong order and are pooled
    isotonic.fit(np.array([0.1, 0.4, 0.6, 0.9]), np.array([0.0, 1.0, 0.0, 1.0]))
    np.testing.assert_allclose(isotonic(np.array([0.0, 0.25, 0.5, 0.75, 1.0])), [0, 0.25, 0.5, 0.75, 1])


def test_isotonic_without_sklearn(monkeypatch):
    isotonic = IsotonicCalibrator()
    import_module = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "trl-mise\[calibration\]"'):
        isotonic.fit(np.array([0.5]), np.array([1.0]))
    with pytest.raises(ImportError, match="posthoc_calibrator='isotonic'"):
        make_calibrator("isotonic")
    isotonic.load_state_dict({"thresholds": [0.2, 0.8], "values": [0.0, 1.0]})
    np.testing.assert_allclose(isotonic(np.array([0.1, 0.5])), [0.0, 0.5])


def test_unknown_map_is_named_with_the_choices():
    with pytest.raises(ValueError, match="posthoc_calibrator='plat' is unknown; choose one of 'identity', 'affine'"):
        make_calibrator("plat")


@pytest.mark.parametrize("name", NAMES)
def test_fit_refuses_bad_data(name):
    with pytest.raises(ValueError, match=r"returns must lie in \[0, 1\], got \[0.0, 3.0\]"):
        make_calibrator(name).fit(np.array([0.5, 0.5]), np.array([0.0, 3.0]))
    with pytest.raises(ValueError, match="S >= 1"):
        make_calibrator(name).fit(np.array([]), np.array([]))
    with pytest.raises(ValueError, match="scores must lie"):
        make_calibrator(name).fit(np.array([np.nan]), np.array([0.0]))
