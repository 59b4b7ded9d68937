import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_mise.written import balanced_advantages, calibration_rewards, parse_verdict

WORDS = ("good", "bad")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("It found the oven. Verdict: good", 0),
        ("rare : bad", 1),
        ("VERDICT:  Bad.\n", 1),
        ("a reason\nthat goes on\nVerdict: good!", 0),
        (": good", 0),
        ("good", None),  # no colon: it may be part of a sentence
        ("Verdict: good, I think", None),
        ("Verdict: goodish", None),
        ("Verdict: good\nVerdict: bad", None),  # which one?
        ("Verdict: good. On second thoughts: good", None),
        ("Verdict:", None),
        ("", None),
        ("Verdict: good bad", None),
        ("bad: it was not good", None),
        ("The step is bad. Verdict: good", 0),
    ],
)
def test_parse(text, expected):
    assert parse_verdict(text, WORDS) == expected


def test_parse_levels_and_phrases():
    levels = ("very good", "good", "so so", "bad")
    assert [parse_verdict(f"well: {level}", levels) for level in levels] == [0, 1, 2, 3]
    assert parse_verdict("well: very  good", levels) == 0
    assert parse_verdict("well: very", levels) is None


@given(st.text(alphabet="gobad :.\nverit", max_size=40))
def test_whatever_is_read_is_the_end_of_the_text(text):
    index = parse_verdict(text, WORDS)
    if index is not None:
        end = text.rstrip().removesuffix(".").removesuffix("!").rstrip()
        assert end.endswith(WORDS[index]) and ":" in text


@given(st.text(max_size=60).filter(lambda text: ":" not in text), st.sampled_from(WORDS))
def test_any_reason_without_a_colon_is_fine(reason, word):
    assert parse_verdict(f"{reason} verdict: {word}", WORDS) == WORDS.index(word)


@given(st.text(max_size=60))
def test_hostile_texts_raise_nothing(text):
    assert parse_verdict(text, WORDS) in (0, 1, None)


def test_step_rewards_golden():
    rewards = calibration_rewards([np.array([1.0, 0.0, np.nan]), np.array([0.5])], np.array([1.0, 0.0]), "step")
    np.testing.assert_allclose(rewards[0], [0.0, -1.0, np.nan])
    np.testing.assert_allclose(rewards[1], [-0.25])


def test_sum_rewards_golden():
    rewards = calibration_rewards([np.array([1.0, 0.0]), np.array([1.0, np.nan])], np.array([1.0, 0.0]), "sum")
    # mean utility of the batch 2/3. Episode 1: p = .5; without its first verdict (2/3 + 0) / 2 = 1/3, without its
    # second (1 + 2/3) / 2 = 5/6.
    np.testing.assert_allclose(rewards[0], [(1 / 3 - 1) ** 2 - 0.25, (5 / 6 - 1) ** 2 - 0.25])
    # Episode 2: p = 1 of the one that can be read; without it 2/3.
    np.testing.assert_allclose(rewards[1], [(2 / 3) ** 2 - 1, np.nan])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.booleans())
def test_praise_earns_more_where_the_episode_was_won(utilities, won):
    """The Brier rule is proper: of two verdicts on the same step, the one nearer to the truth earns more."""
    others = np.array(utilities)
    for target in ("sum", "step"):
        earned = {}
        for verdict in (0.0, 1.0):
            episode = np.array([verdict, *others])
            anchor = np.array([0.5] * 20)  # holds the batch's mean in place
            earned[verdict] = calibration_rewards([episode, anchor], np.array([float(won), 0.5]), target)[0][0]
        assert (earned[1.0] >= earned[0.0]) == won or earned[1.0] == pytest.approx(earned[0.0], abs=0.05)


def test_step_rewards_are_a_proper_scoring_rule():
    """A verdict's expected reward is highest where its utility is the probability of winning."""
    for chance in (0.1, 0.5, 0.8):
        grid = np.linspace(0, 1, 101)
        expected = (
            chance * calibration_rewards([grid], np.array([1.0]), "step")[0]
            + (1 - chance) * calibration_rewards([grid], np.array([0.0]), "step")[0]
        )
        assert grid[expected.argmax()] == pytest.approx(chance)


def test_balanced_advantages():
    rewards = [np.array([0.4, np.nan]), np.array([0.0, -0.2]), np.array([-0.1]), np.array([-0.1])]
    won = np.array([True, False, False, False])
    advantages = balanced_advantages(rewards, won)
    assert advantages[0][1] == 0.0  # not readable
    # Both classes weigh the same, and the whole is centred.
    total_won = advantages[0].sum()
    total_lost = sum(values.sum() for values in advantages[1:])
    assert total_won == pytest.approx(-total_lost) and total_won > 0
    assert all((values == 0).all() for values in balanced_advantages(rewards, np.zeros(4, bool)))


def test_bad_input():
    with pytest.raises(ValueError, match="target='all' is unknown"):
        calibration_rewards([], np.zeros(0), "all")
    with pytest.raises(ValueError, match="returns must be"):
        calibration_rewards([np.array([1.0])], np.array([2.0]), "sum")
