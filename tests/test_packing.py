"""The tree of questions: what it shares, who sees whom, and how rows are grouped."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_mise.packing import ScoringRow, Verdicts, plan_batches, question_tree

WORDS = Verdicts.of([7, 8])
PHRASES = Verdicts.of([[7], [8, 9, 5]])


def test_questions_that_begin_alike_share_their_beginning() -> None:
    tree = question_tree(ScoringRow([1] * 10, [[3, 4, 5], [3, 4, 6, 2], [4]], [10, 10, 10]), WORDS)
    assert tree.token_ids.tolist() == [3, 4, 5, 6, 2, 4]
    assert tree.position.tolist() == [10, 11, 12, 12, 13, 10]
    assert tree.visible.tolist() == [10] * 6
    assert tree.sees.astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert tree.read_at.tolist() == [2, 2, 4, 4, 5, 5] and tree.num_suffixes == 3


def test_questions_that_see_different_parts_share_nothing() -> None:
    tree = question_tree(ScoringRow([1] * 10, [[3, 4], [3, 4]], [10, 6]), WORDS)
    assert tree.token_ids.tolist() == [3, 4, 3, 4] and tree.position.tolist() == [10, 11, 6, 7]
    assert tree.visible.tolist() == [10, 10, 6, 6]
    assert not tree.sees[2:, :2].any() and not tree.sees[:2, 2:].any()


def test_verdicts_of_several_tokens_are_branches() -> None:
    tree = question_tree(ScoringRow([1, 1], [[3, 4], [3]], [2, 2]), PHRASES)
    # 3 -> 4 -> (8 -> 9), and 3 -> (8 -> 9)
    assert tree.token_ids.tolist() == [3, 4, 8, 9, 8, 9]
    assert tree.position.tolist() == [2, 3, 4, 5, 3, 4]
    # For each question: 7 after it; then 8 after it, 9 after 8, 5 after 9.
    assert tree.read_at.tolist() == [1, 1, 2, 3, 0, 0, 4, 5]
    assert tree.sees[5].tolist() == [True, False, False, False, True, True]


def test_verdicts_are_checked() -> None:
    assert WORDS.are_words and not PHRASES.are_words
    assert WORDS.words == [7, 8] and WORDS.branches == [()] and PHRASES.branches == [(), (8, 9)]
    assert Verdicts.of(np.array([7, 8])) == WORDS == Verdicts.of([[7], [8]])
    with pytest.raises(ValueError, match=r"verdict_ids\[1\] is empty"):
        Verdicts.of([[7], []])
    with pytest.raises(ValueError, match=r"verdict_ids\[1\]=\[8\] begins verdict_ids\[0\]=\[8, 9\]"):
        Verdicts.of([[8, 9], [8]])


@given(data=st.data())
def test_every_path_of_the_tree_is_its_question(data: st.DataObject) -> None:
    """Walking back from where a verdict is read gives the question, at consecutive positions."""
    token = st.integers(0, 3)  # few tokens, so that much is shared
    suffixes = data.draw(st.lists(st.lists(token, min_size=1, max_size=5), min_size=1, max_size=6))
    visible = [data.draw(st.integers(1, 3)) for _ in suffixes]
    tree = question_tree(ScoringRow([0, 0, 0], suffixes, visible), WORDS)
    assert tree.size <= sum(map(len, suffixes))
    for suffix, seen, end in zip(suffixes, visible, tree.read_at[::2], strict=True):
        path = np.flatnonzero(tree.sees[end])
        assert tree.token_ids[path].tolist() == suffix
        assert tree.position[path].tolist() == list(range(seen, seen + len(suffix)))
        assert set(tree.visible[path].tolist()) == {seen}
    paths = {
        (seen, *suffix[:n]) for suffix, seen in zip(suffixes, visible, strict=True) for n in range(1, 1 + len(suffix))
    }
    assert tree.size == len(paths)  # nothing is there twice


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    max_tokens=st.integers(1, 200),
)
def test_batches_are_a_partition_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    batches = plan_batches(lengths, max_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= max_tokens
