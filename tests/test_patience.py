import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_mise.patience import Patience

SILENT, WON = np.zeros(8), np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])


def held(patience: Patience, *batches: np.ndarray) -> list[bool]:
    """Batch by batch."""
    found = []
    for batch in batches:
        patience.hear(batch)
        found.append(patience.holds)
    return found


def test_it_holds_for_n_silent_episodes_and_no_longer():
    assert held(Patience(16), *[SILENT] * 4) == [True, True, False, False]


def test_a_batch_that_would_go_beyond_n_is_not_held():
    assert held(Patience(12), SILENT, SILENT) == [True, False]


def test_it_waits_anew_after_a_batch_that_speaks_which_is_not_held_itself():
    assert held(Patience(16), WON, SILENT, SILENT, SILENT, WON, SILENT) == [False, True, True, False, False, True]


@pytest.mark.parametrize("said", [0.0, 0.3, -1e6])
def test_returns_that_differ_by_rounding_say_nothing(said):
    assert held(Patience(64), said + np.array([0.0, 1e-9]) * abs(said)) == [True]


@pytest.mark.parametrize("said", [[-0.01, -0.02], [1.0, 1.001], [1e-9, 0.0]])
def test_any_other_difference_does(said):
    assert held(Patience(64), np.array(said)) == [False]


def test_an_empty_batch_counts_nothing():
    assert held(Patience(8), np.zeros(0), SILENT, np.zeros(0), SILENT) == [False, True, True, False]


@pytest.mark.parametrize("n", [8, 64, 256, 4096])
def test_rule_of_three(n):
    """Of a success rate of 3 / N, N episodes show nothing with a probability just below 5%."""
    assert 0.02 < (1 - 3 / n) ** n < 0.05


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=6), max_size=12), st.integers(1, 20))
def test_held_means_silent_but_not_for_long(batches, n):
    found = held(Patience(n), *map(np.array, batches))
    for i, holds in enumerate(found):
        heard = 0  # episodes of the silent batches that end with this one
        for batch in reversed(batches[: i + 1]):
            if len(set(batch)) > 1:
                break
            heard += len(batch)
        assert holds == (0 < heard <= n)


def test_its_state_goes_through_json():
    one, other = Patience(16), Patience(16)
    held(one, WON, SILENT)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.holds and held(other, SILENT, SILENT) == held(one, SILENT, SILENT) == [True, False]


def test_errors():
    with pytest.raises(ValueError, match="hindsight_patience must be at least 1 episode"):
        Patience(-1)
    with pytest.raises(ValueError, match="returns must be finite"):
        Patience(8).hear(np.array([0.0, np.nan]))
