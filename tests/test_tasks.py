"""Seeded epochs over the rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_mise.tasks import TaskSampler


@given(num_rows=st.integers(1, 30), batch_size=st.integers(1, 30), seed=st.integers(0, 5))
def test_batches_of_an_epoch_are_disjoint(num_rows: int, batch_size: int, seed: int) -> None:
    """Also right after an epoch whose rest was dropped: batches never mix epochs."""
    batch_size = min(batch_size, num_rows)
    sampler = TaskSampler(num_rows, batch_size, seed)
    for _ in range(3):
        epoch = [sampler.next_batch() for _ in range(num_rows // batch_size)]
        rows = sum(epoch, [])
        assert all(len(batch) == batch_size for batch in epoch)
        assert len(set(rows)) == len(rows) and set(rows) <= set(range(num_rows))


def test_every_row_comes_in_every_epoch_in_another_order() -> None:
    sampler = TaskSampler(12, 4, seed=0)
    first, second = (sum((sampler.next_batch() for _ in range(3)), []) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_seed_decides() -> None:
    def play(seed: int) -> list[list[int]]:
        sampler = TaskSampler(12, 4, seed)
        return [sampler.next_batch() for _ in range(6)]

    assert play(0) == play(0) != play(1)


def test_fewer_rows_than_a_batch() -> None:
    with pytest.raises(ValueError, match="3 rows are fewer than one batch of 4"):
        TaskSampler(3, 4, seed=0)
