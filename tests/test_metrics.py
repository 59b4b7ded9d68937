"""Golden numbers by hand, agreement with scikit-learn, and the identities that the health signals obey."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_mise.metrics import (
    auroc,
    brier,
    ece,
    episode_metrics,
    hindsight_metrics,
    kl_to_proxy,
    mutual_information,
    score_by_step,
    verdict_entropy,
    within_episode_spread,
)
from trl_mise.theory import kl, proxy_distribution
from trl_mise.types import HindsightScores, StopReason, Trajectory, Turn

GOOD_BAD = np.array([1.0, 0.0])


def episode(rewards, *, stop=StopReason.TERMINATED, valid=None, width=2):
    """An episode of two-token turns (an action of `width` sampled tokens, one token of observation)."""
    turns, position = [], 1
    for i, reward in enumerate(rewards):
        span = (position, position + width)
        position = span[1] + 1
        turns.append(Turn("o", "a", reward, span, position, action_valid=True if valid is None else valid[i]))
    return Trajectory(tuple(range(position)), tuple(turns), stop)


def scores_of(per_episode):
    flat = np.concatenate([np.asarray(values, dtype=np.float64) for values in per_episode])
    return HindsightScores(flat, np.stack([flat, 1 - flat], axis=1), tuple(len(values) for values in per_episode))


# --- AUROC, Brier, ECE -------------------------------------------------------------------------------------------


def test_auroc_golden():
    # pairs (won, lost): .9>.8, .9>.1, .4<.8, .4>.1 -> 3 of 4
    assert auroc(np.array([0.9, 0.8, 0.4, 0.1]), np.array([1, 0, 1, 0])) == 0.75
    # .5 against .5 counts one half
    assert auroc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5


def test_auroc_is_nan_with_one_class():
    assert np.isnan(auroc(np.array([0.2, 0.3]), np.array([1, 1])))
    assert np.isnan(auroc(np.array([0.2, 0.3]), np.array([0, 0])))
    assert np.isnan(auroc(np.array([]), np.array([])))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_auroc_agrees_with_sklearn_with_ties(pairs):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    scores, outcomes = np.array([s / 6 for s, _ in pairs]), np.array([o for _, o in pairs])
    if outcomes.all() or not outcomes.any():
        assert np.isnan(auroc(scores, outcomes))
        return
    value = auroc(scores, outcomes)
    assert value == pytest.approx(sklearn_metrics.roc_auc_score(outcomes, scores), abs=1e-12)
    assert auroc(-scores, outcomes) == pytest.approx(1 - value, abs=1e-12)
    assert auroc(np.exp(3 * scores), outcomes) == value  # only the order counts


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=60), st.integers(1, 12))
def test_brier_and_ece_agree_with_sklearn(pairs, bins):
    pytest.importorskip("sklearn")
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss

    scores, outcomes = (np.array(column) for column in zip(*pairs, strict=True))
    # On the edge of a bin the two disagree about who is in it.
    scores = np.where(np.abs(scores * bins - np.round(scores * bins)) < 1e-9, 0.5 / bins, scores)
    if outcomes.all() or not outcomes.any():
        return
    assert brier(scores, outcomes) == pytest.approx(brier_score_loss(outcomes, scores), abs=1e-12)
    share, mean = calibration_curve(outcomes, scores, n_bins=bins, strategy="uniform")
    counts = np.bincount(np.minimum((scores * bins).astype(int), bins - 1), minlength=bins)
    expected = (counts[counts > 0] * np.abs(share - mean)).sum() / len(scores)
    assert ece(scores, outcomes, bins) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("flip", [0.0, 0.1, 0.25, 0.5])
def test_mutual_information_of_a_binary_channel(flip):
    """Verdicts that are right with probability 1 - flip, about steps that are good half the time: log 2 - H(flip)."""
    rows = np.array([[1 - flip, flip], [flip, 1 - flip]] * 50)
    closed_form = np.log(2) + sum(p * np.log(p) for p in (flip, 1 - flip) if p > 0)
    assert mutual_information(rows) == pytest.approx(closed_form, abs=1e-12)


def test_score_by_step():
    assert score_by_step([np.array([0.2, 0.4]), np.array([0.6]), np.array([])]) == {
        0: pytest.approx(0.4),
        1: pytest.approx(0.4),
    }
    assert score_by_step([]) == {}
    long = score_by_step([np.arange(10) / 10], most=4)  # three steps at a time
    assert long == {0: pytest.approx(0.1), 3: pytest.approx(0.4), 6: pytest.approx(0.7), 9: pytest.approx(0.9)}


def test_brier_golden_and_decomposition_at_a_constant():
    assert brier(np.array([0.9, 0.2, 0.5]), np.array([1.0, 0.0, 0.0])) == pytest.approx((0.01 + 0.04 + 0.25) / 3)
    returns = np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    assert brier(np.full(5, returns.mean()), returns) == pytest.approx(returns.var())
    assert np.isnan(brier(np.array([]), np.array([])))


def test_ece_golden():
    # bin .2: scores .25 and .29, one won -> |.54 - 1| = .46; bin .9: .95 won and 1.0 lost -> |1.95 - 1| = .95
    scores, outcomes = np.array([0.25, 0.29, 0.95, 1.0]), np.array([1, 0, 1, 0])
    assert ece(scores, outcomes) == pytest.approx((0.46 + 0.95) / 4)
    # one bin: |mean score - mean outcome|
    assert ece(scores, outcomes, bins=1) == pytest.approx(abs(scores.mean() - 0.5))


def test_ece_is_zero_for_a_calibrated_judge_and_one_for_a_flipped_oracle():
    scores = np.repeat([0.25, 0.75], 4)
    assert ece(scores, np.array([1, 0, 0, 0, 1, 1, 1, 0])) == 0.0
    outcomes = np.array([0.0, 1.0, 1.0])
    assert ece(1 - outcomes, outcomes) == 1.0
    assert ece(outcomes, outcomes) == 0.0


def test_ece_bins_are_closed_on_the_left():
    # .1 belongs to the second bin: with .0 in the first the gaps cannot cancel
    assert ece(np.array([0.0, 0.1]), np.array([1.0, 0.0])) == pytest.approx((1.0 + 0.1) / 2)


def test_ece_tolerates_float32_rounding_but_not_log_odds():
    assert ece(np.array([1.0 + 1e-7]), np.array([1.0])) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        ece(np.array([2.0, -1.0]), np.array([1, 0]))


@pytest.mark.parametrize("metric", [auroc, brier, ece])
def test_bad_pairs_are_refused(metric):
    with pytest.raises(ValueError, match=r"scores has shape \(2,\)"):
        metric(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="must be finite"):
        metric(np.array([0.1, np.nan]), np.array([0, 1]))


# --- spread, entropy, the theory terms ---------------------------------------------------------------------------


def test_spread_is_within_episodes_only():
    # episodes that differ from each other, but not inside, have none
    assert within_episode_spread([np.full(3, 0.9), np.full(5, 0.1)]) == 0.0
    # std of (0, 1) is .5, std of (.5, .5, .5) is 0
    assert within_episode_spread([np.array([0.0, 1.0]), np.full(3, 0.5), np.array([])]) == 0.25
    assert np.isnan(within_episode_spread([np.array([])]))


def test_verdict_entropy_golden():
    assert verdict_entropy(np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx(np.log(2) / 2)
    assert verdict_entropy(np.full((4, 3), 1 / 3)) == pytest.approx(np.log(3))


def test_mutual_information_zero_when_collapsed_and_log_two_when_decided():
    assert mutual_information(np.tile([0.8, 0.2], (7, 1))) == pytest.approx(0.0, abs=1e-12)
    assert mutual_information(np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(np.log(2))


def test_kl_to_proxy_vanishes_at_the_proxy():
    utilities = np.array([1.0, 0.5, 0.0])
    proxy = proxy_distribution(utilities, 0.7)
    assert kl_to_proxy(np.stack([proxy, proxy]), utilities, 0.7) == pytest.approx(0.0, abs=1e-12)
    # mean q = (.5, .5) against sigmoid(1): log(.5) - (log p + log(1 - p)) / 2
    p = 1 / (1 + np.exp(-1.0))
    expected = np.log(0.5) - (np.log(p) + np.log(1 - p)) / 2
    assert kl_to_proxy(np.array([[1.0, 0.0], [0.0, 1.0]]), GOOD_BAD, 1.0) == pytest.approx(expected)


def test_batch_terms_obey_the_first_theory_identity():
    probs = np.random.default_rng(0).dirichlet(np.ones(4), size=30)
    utilities = np.linspace(1, 0, 4)
    left = kl(probs, proxy_distribution(utilities, 0.5)).mean()
    assert left == pytest.approx(mutual_information(probs) + kl_to_proxy(probs, utilities, 0.5), abs=1e-12)


def test_float32_rows_are_renormalised_and_nonsense_refused():
    rows = np.random.default_rng(1).dirichlet(np.ones(3), size=10)
    assert mutual_information(rows.astype(np.float32)) == pytest.approx(mutual_information(rows), abs=1e-6)
    for bad in (np.array([[0.5, 0.9]]), np.array([[-0.5, 1.5]]), np.array([[np.nan, 0.5]])):
        with pytest.raises(ValueError, match="rows that sum to 1"):
            verdict_entropy(bad)
    with pytest.raises(ValueError, match=r"give \(S, K\)"):
        verdict_entropy(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="one utility per verdict"):
        kl_to_proxy(np.array([[0.5, 0.5]]), np.array([1.0, 0.5, 0.0]), 1.0)


# --- what is logged ----------------------------------------------------------------------------------------------


def test_hindsight_metrics_golden():
    trajectories = [episode([0.0, 1.0]), episode([0.0, 0.0]), episode([0.0])]
    scores = scores_of([[0.6, 1.0], [0.1, 0.5], [0.2]])  # episode scores .8 (won), .3, .2 (lost)
    metrics = hindsight_metrics(scores, trajectories, GOOD_BAD, beta=0.5)
    assert metrics == {
        "hindsight/score_mean": pytest.approx(1.3 / 3),
        "hindsight/score_gap": pytest.approx(0.8 - 0.25),
        "hindsight/auroc": 1.0,
        "hindsight/brier": pytest.approx((0.04 + 0.09 + 0.04) / 3),
        "hindsight/ece": pytest.approx((0.2 + 0.3 + 0.2) / 3),
        "hindsight/within_episode_spread": pytest.approx((0.2 + 0.2 + 0.0) / 3),
        "hindsight/verdict_entropy": pytest.approx(verdict_entropy(scores.verdict_probs)),
        "mise/mutual_information": pytest.approx(mutual_information(scores.verdict_probs)),
        "mise/kl_to_proxy": pytest.approx(kl_to_proxy(scores.verdict_probs, GOOD_BAD, 0.5)),
        "hindsight/by_step/0": pytest.approx(0.9 / 3),
        "hindsight/by_step/1": pytest.approx(0.75),
    }
    assert all(type(value) is float for value in metrics.values())


def test_hindsight_metrics_leave_out_what_is_undefined():
    lost = hindsight_metrics(scores_of([[0.3, 0.4], [0.5]]), [episode([0, 0]), episode([0])], GOOD_BAD)
    assert "hindsight/auroc" not in lost and "hindsight/score_gap" not in lost
    assert lost["hindsight/brier"] == pytest.approx((0.35**2 + 0.5**2) / 2)
    unbounded = hindsight_metrics(scores_of([[0.3], [0.5]]), [episode([7.0]), episode([-2.0])], GOOD_BAD)
    assert "hindsight/brier" not in unbounded and unbounded["hindsight/auroc"] == 0.0


def test_hindsight_metrics_ignore_failed_and_empty_episodes():
    good = [episode([1.0]), episode([0.0, 0.0])]
    kept = hindsight_metrics(scores_of([[0.9], [0.2, 0.4]]), good, GOOD_BAD)
    failed = [good[0], episode([0.0], stop=StopReason.ENV_ERROR), episode([]), good[1]]
    assert hindsight_metrics(scores_of([[0.9], [0.5], [], [0.2, 0.4]]), failed, GOOD_BAD) == kept
    only_failed = [episode([0.0], stop=StopReason.ENV_ERROR)]
    assert hindsight_metrics(scores_of([[0.5]]), only_failed, GOOD_BAD) == {}


def test_hindsight_metrics_refuse_other_episodes():
    with pytest.raises(ValueError, match="the trajectories that were scored"):
        hindsight_metrics(scores_of([[0.9], [0.2, 0.4]]), [episode([0, 0]), episode([1])], GOOD_BAD)


def test_episode_metrics_golden():
    trajectories = [
        episode([0.0, 1.0]),
        episode([0.0, 0.0, 0.5], stop=StopReason.MAX_TURNS, valid=[True, False, True], width=4),
        episode([9.0], stop=StopReason.ENV_ERROR, valid=[False]),
        episode([0.0], stop=StopReason.TOKEN_BUDGET, width=3),
    ]
    assert episode_metrics(trajectories) == {
        "env/success": pytest.approx(1 / 3),
        "env/return": pytest.approx(0.5),
        "env/episode_length": 2.0,
        "env/invalid_action_rate": pytest.approx(1 / 6),
        "env/truncated_rate": pytest.approx(2 / 3),
        "env/error_rate": 0.25,
        "env/action_tokens": pytest.approx((4 + 12 + 3) / 3),
    }


def test_episode_metrics_without_episodes():
    assert episode_metrics([]) == {}
    assert episode_metrics([episode([1.0], stop=StopReason.ENV_ERROR)]) == {"env/error_rate": 1.0}
    assert "env/invalid_action_rate" not in episode_metrics([episode([])])
