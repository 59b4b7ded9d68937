"""Each warning is provoked once, and stays quiet where the same sign has a harmless reason."""

import numpy as np
import pytest

from trl_mise.health import HealthMonitor, HealthThresholds

HEALTHY = {
    "mise/mutual_information": 0.1,
    "env/success": 0.3,
    "env/episode_length": 4.0,
    "hindsight/score_mean": 0.5,
}
WON = np.array([True] * 8 + [False] * 24)


def scores(gap, seed=0):
    """Episode scores of which the won ones are higher by `gap`, with noise."""
    return 0.5 + gap * WON + np.random.default_rng(seed).normal(0, 0.05, len(WON))


def run(updates, thresholds=None):
    """All messages of a run of (metrics over the healthy ones, gap between won and lost)."""
    monitor = HealthMonitor(thresholds)
    return [
        message
        for i, (metrics, gap) in enumerate(updates)
        for message in monitor.update({**HEALTHY, **metrics}, scores(gap, i), WON)
    ]


def said(updates, failure):
    messages = run(updates)
    assert all(failure in message for message in messages), messages
    return len(messages)


def test_a_healthy_run_is_quiet():
    assert run([({}, 0.2)] * 40) == []


@pytest.mark.parametrize("count, expected", [(4, 0), (5, 1), (30, 1)])
def test_collapsed_verdicts(count, expected):
    assert said([({"mise/mutual_information": 1e-5}, 0.2)] * count, "collapsed verdicts") == expected


def test_the_same_verdict_of_everything_is_right_once_the_task_is_solved():
    assert run([({"mise/mutual_information": 1e-5, "env/success": 0.97}, 0.2)] * 20) == []


def test_a_short_lull_is_no_collapse():
    lull = [({"mise/mutual_information": 1e-5}, 0.2)] * 4
    assert run([*lull, ({}, 0.2), *lull, ({}, 0.2)]) == []


def test_an_anti_correlated_judge():
    messages = run([({}, -0.2)] * 20)
    assert len(messages) == 1 and "anti-correlated judge" in messages[0] and "hindsight_gate" in messages[0]


def test_a_judge_at_chance_is_not_anti_correlated():
    assert run([({}, 0.0)] * 40) == []


def test_few_outcomes_prove_nothing():
    monitor = HealthMonitor()
    one_win = np.array([True] + [False] * 31)
    for _ in range(5):
        # Five wins in all, every one of them scored lowest.
        assert monitor.update(HEALTHY, 0.5 - 0.4 * one_win, one_win) == []


def test_a_drifting_judge():
    # From right to chance: not anti-correlated, but what it knew is gone.
    assert said([({}, 0.2)] * 10 + [({}, 0.0)] * 12, "drifting judge") == 1


def test_a_judge_that_the_policy_has_outgrown_does_not_drift():
    assert run([({}, 0.2)] * 10 + [({"env/success": 0.8}, 0.0)] * 12) == []


def test_a_judge_that_was_never_better_does_not_drift():
    assert run([({}, 0.01)] * 40) == []


LONG = {"env/episode_length": 9.0, "hindsight/score_mean": 0.6}


def test_length_hacking():
    assert said([({}, 0.2)] * 6 + [({**LONG, "env/success": 0.2}, 0.2)] * 8, "length hacking") == 1


@pytest.mark.parametrize(
    "later",
    [
        {**LONG, "env/success": 0.5},  # longer, and wins more
        {**LONG, "hindsight/score_mean": 0.3},  # longer, and blamed for it
        {"env/episode_length": 5.0, "hindsight/score_mean": 0.6, "env/success": 0.2},  # hardly longer
    ],
)
def test_longer_episodes_with_a_reason(later):
    assert run([({}, 0.2)] * 6 + [(later, 0.2)] * 10) == []


def test_every_message_names_an_option_that_exists():
    from trl_mise import MISEConfig

    provoked = [
        *run([({"mise/mutual_information": 1e-5}, 0.2)] * 5),
        *run([({}, -0.2)] * 20),
        *run([({}, 0.2)] * 10 + [({}, 0.0)] * 12),
        *run([({}, 0.2)] * 6 + [({**LONG, "env/success": 0.2}, 0.2)] * 8),
    ]
    assert len(provoked) == 4
    options = MISEConfig.__dataclass_fields__
    for message in provoked:
        named = [word.split("=")[0] for word in message.replace(",", " ").split() if word.split("=")[0] in options]
        assert named, message


def test_thresholds_are_the_users():
    strict = HealthThresholds(patience=1, collapsed_information=0.5)
    assert len(run([({}, 0.2)], strict)) == 1
