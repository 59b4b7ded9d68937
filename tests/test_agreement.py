import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_mise.agreement import AgreementGate


def gate_after(*batches, momentum=0.9):
    gate = AgreementGate(momentum)
    for batch in batches:
        gate.update(np.array(batch))
    return gate


def test_it_is_open_while_nothing_is_known():
    assert AgreementGate().value == 1.0
    # One episode has no error to compare its mean with; episodes that are exactly alike neither.
    assert gate_after([], [-1.0], [-0.5, -0.5]).value == 1.0


def test_golden():
    gate = gate_after([-1.0, 0.0, 1.0, -2.0])
    # mean -.5, variance of the mean (5/3)/4, so z = -.5 / sqrt(5/12)
    assert gate.z == pytest.approx(-0.5 / math.sqrt(5 / 12))
    assert gate.value == pytest.approx(2 * 0.21929, abs=1e-4)  # 2 Phi(-.7746)
    gate.update(np.array([1.0, 3.0]))
    assert gate.z == pytest.approx((0.9 * -0.5 + 2.0) / math.sqrt(0.81 * 5 / 12 + 1.0))
    assert gate.value == 1.0


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20), st.floats(0.01, 100))
def test_the_scale_of_the_returns_does_not_matter(values, scale):
    if np.std(values) < 1e-6:
        return
    assert gate_after(values).z == pytest.approx(gate_after([scale * value for value in values]).z, rel=1e-6, abs=1e-9)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=10), max_size=8))
def test_it_stays_between_closed_and_open(batches):
    assert 0.0 <= gate_after(*batches).value <= 1.0


def test_noise_leaves_it_mostly_open_and_harm_closes_it():
    rng = np.random.default_rng(0)
    noise = [gate_after(*rng.normal(0, 1, (30, 32))).value for _ in range(200)]
    # Under no agreement at all z is standard normal: half the time the gate is fully open.
    assert 0.4 < np.mean(np.array(noise) == 1.0) < 0.6
    assert np.std([gate_after(*rng.normal(0, 1, (30, 32))).z for _ in range(200)]) == pytest.approx(1.0, abs=0.15)
    harmful = [gate_after(*rng.normal(-0.3, 1, (30, 32))).value for _ in range(50)]
    assert np.quantile(harmful, 0.9) < 0.01
    helpful = [gate_after(*rng.normal(0.3, 1, (30, 32))).value for _ in range(50)]
    assert min(helpful) == 1.0


def test_it_forgets():
    gate = gate_after(*[[-1.0, -1.5, -0.5]] * 10)
    assert gate.value < 1e-3
    for _ in range(40):
        gate.update(np.array([1.0, 1.5, 0.5]))
    assert gate.value == 1.0


def test_state_survives_json():
    gate = gate_after([-1.0, 0.5, 0.0], [0.1, -0.7])
    other = AgreementGate()
    other.load_state_dict(json.loads(json.dumps(gate.state_dict())))
    assert other.value == gate.value and other.z == gate.z
    other.update(np.array([0.2, -0.4]))
    gate.update(np.array([0.2, -0.4]))
    assert other.z == gate.z


def test_bad_input():
    with pytest.raises(ValueError, match="momentum must be in"):
        AgreementGate(1.0)
    with pytest.raises(ValueError, match="agreement must be finite"):
        AgreementGate().update(np.array([0.0, np.nan]))


def test_the_mean_it_estimates_is_the_slope_of_the_return():
    """dJ/d eta of pi'(a) ∝ pi(a) exp(eta n(a)) at eta = 0 is E[A n], on a one-state table."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        pi, reward, praise = rng.dirichlet(np.ones(5)), rng.normal(size=5), rng.normal(size=5)

        def expected_return(eta, pi=pi, reward=reward, praise=praise):
            tilted = pi * np.exp(eta * praise)
            return tilted @ reward / tilted.sum()

        slope = (expected_return(1e-5) - expected_return(-1e-5)) / 2e-5
        advantage = reward - pi @ reward
        assert pi @ (advantage * praise) == pytest.approx(slope, abs=1e-8)
