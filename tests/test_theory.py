"""The three identities of "Why it works" on random tables, and the tables' own golden numbers."""

import numpy as np
import pytest

from trl_mise.theory import (
    entropy,
    kl,
    log_partition,
    mutual_information_table,
    proxy_distribution,
    proxy_policy,
)

EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(params=range(20))
def table(request):
    """A state with A actions and K verdicts: pi (A,), q (A, K), utilities (K,), beta; some entries nearly 0."""
    rng = np.random.default_rng(request.param)
    num_actions, num_verdicts = int(rng.integers(2, 9)), int(rng.integers(2, 6))
    pi = rng.dirichlet(np.full(num_actions, 0.5))
    q = rng.dirichlet(np.full(num_verdicts, 0.5), size=num_actions)
    utilities = np.linspace(1.0, 0.0, num_verdicts)
    return pi, q, utilities, float(rng.uniform(0.2, 2.0))


def test_pull_to_the_proxy_splits_into_information_and_marginal(table):
    pi, q, utilities, beta = table
    proxy = proxy_distribution(utilities, beta)
    left = pi @ kl(q, proxy)
    right = mutual_information_table(pi, q) + kl(pi @ q, proxy)
    np.testing.assert_allclose(left, right, **EXACT)


def test_expected_utility_with_conditional_entropy_and_constant(table):
    pi, q, utilities, beta = table
    expected_utility = pi @ q @ utilities
    objective = mutual_information_table(pi, q) + kl(pi @ q, proxy_distribution(utilities, beta))
    conditional_entropy = pi @ entropy(q)  # H(E | s, A)
    right = -beta * objective - beta * conditional_entropy + beta * log_partition(utilities, beta)
    np.testing.assert_allclose(expected_utility, right, **EXACT)
    # the entropy term is not decoration: without it the identity fails
    assert abs(expected_utility - (right + beta * conditional_entropy)) > 1e-3


def test_log_praise_is_a_pull_to_the_proxy_policy(table):
    pi, q, _, _ = table
    q_good = q[:, 0]
    left = pi @ np.log(q_good)
    right = -kl(pi, proxy_policy(pi, q_good)) + np.log(pi @ q_good)
    np.testing.assert_allclose(left, right, **EXACT)


def test_information_is_the_drop_in_entropy(table):
    pi, q, _, _ = table
    np.testing.assert_allclose(mutual_information_table(pi, q), entropy(pi @ q) - pi @ entropy(q), **EXACT)


def test_information_is_zero_when_verdicts_ignore_actions():
    pi = np.array([0.2, 0.5, 0.3])
    q = np.tile([0.7, 0.2, 0.1], (3, 1))
    assert mutual_information_table(pi, q) == pytest.approx(0.0, abs=1e-15)


def test_information_is_the_policys_entropy_when_verdicts_name_the_action():
    pi = np.array([0.2, 0.5, 0.3])
    assert mutual_information_table(pi, np.eye(3)) == pytest.approx(entropy(pi), abs=1e-15)


def test_an_action_never_taken_carries_no_information():
    assert mutual_information_table(np.array([1.0, 0.0]), np.eye(2)) == 0.0


def test_golden_entropy_and_kl():
    assert entropy(np.array([0.5, 0.5])) == pytest.approx(0.6931471805599453)
    assert entropy(np.array([1.0, 0.0])) == 0.0
    # 0.5 log(0.5/0.25) + 0.5 log(0.5/0.75) = 0.5 log(4/3)
    assert kl(np.array([0.5, 0.5]), np.array([0.25, 0.75])) == pytest.approx(0.14384103622589045)
    assert kl(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == np.inf
    assert kl(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(np.log(2))


def test_proxy_distribution_golden_and_stable():
    # sigmoid(1 / 0.5) = 0.8807970779778823
    np.testing.assert_allclose(
        proxy_distribution(np.array([1.0, 0.0]), 0.5), [0.8807970779778823, 0.11920292202211757]
    )
    cold = proxy_distribution(np.array([1.0, 0.5, 0.0]), 1e-4)
    np.testing.assert_array_equal(cold, [1.0, 0.0, 0.0])
    hot = proxy_distribution(np.array([1.0, 0.5, 0.0]), 1e9)
    np.testing.assert_allclose(hot, 1 / 3, atol=1e-8)


def test_proxy_policy_golden():
    np.testing.assert_allclose(proxy_policy(np.array([0.5, 0.5]), np.array([0.9, 0.3])), [0.75, 0.25])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="beta must be > 0, got 0"):
        proxy_distribution(np.array([1.0, 0.0]), 0)
    with pytest.raises(ValueError, match="no action that pi takes is ever called good"):
        proxy_policy(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"pi has shape \(3,\)"):
        mutual_information_table(np.full(3, 1 / 3), np.eye(2))
