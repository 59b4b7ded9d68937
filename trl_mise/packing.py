"""The layout of many questions about one trajectory in one row: a tree, so that a common beginning is there once.

Question t follows the first `visible[t]` tokens of the trajectory and sees these and itself. Questions that follow the
same tokens and begin alike ("In hindsight, was step ...") share that beginning, exactly: the same tokens, at the same
positions, seeing the same keys. Verdicts of several tokens are branches of the same tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class ScoringRow:
    """One trajectory and the questions about it.

    Args:
        token_ids (`Sequence[int]`): `(L,)` the trajectory.
        suffixes (`Sequence[Sequence[int]]`): `(T, q_t)` token ids of each question.
        visible (`Sequence[int]`): `(T,)` suffix t follows `token_ids[:visible[t]]` and sees nothing else.
    """

    token_ids: Sequence[int]
    suffixes: Sequence[Sequence[int]]
    visible: Sequence[int]

    @property
    def prefix_length(self) -> int:
        """Tokens of the trajectory that at least one suffix sees; the rest need not be computed."""
        return max(self.visible)

    @property
    def packed_length(self) -> int:
        """Most tokens of the row with its questions; fewer where questions begin alike."""
        return self.prefix_length + sum(len(suffix) for suffix in self.suffixes)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The K verdicts as token sequences.

    A verdict's logit is the sum of its tokens' log-probabilities; where every verdict is one token, that token's
    logit, which is the same after normalisation over the verdicts.

    Args:
        token_ids (`tuple[tuple[int, ...], ...]`): `(K, m_k)`.

    Raises:
        ValueError: a verdict without tokens, or one that begins another.
    """

    token_ids: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for k, tokens in enumerate(self.token_ids):
            if not tokens:
                raise ValueError(f"verdict_ids[{k}] is empty; a verdict needs at least one token")
            for other, longer in enumerate(self.token_ids):
                if other != k and longer[: len(tokens)] == tokens:
                    raise ValueError(
                        f"verdict_ids[{k}]={list(tokens)} begins verdict_ids[{other}]={list(longer)}: the probability "
                        "of the one contains the other's; choose verdicts of which none begins another"
                    )

    @classmethod
    def of(cls, verdict_ids: Sequence[int] | Sequence[Sequence[int]]) -> "Verdicts":
        """From K ids, or from K lists of ids."""
        return cls(tuple((int(v),) if np.isscalar(v) else tuple(map(int, v)) for v in verdict_ids))  # type: ignore[arg-type]

    @property
    def are_words(self) -> bool:
        """Every verdict is one token."""
        return all(len(tokens) == 1 for tokens in self.token_ids)

    @property
    def words(self) -> list[int]:
        """First token of each verdict."""
        return [tokens[0] for tokens in self.token_ids]

    @property
    def branches(self) -> list[tuple[int, ...]]:
        """What may follow a question on the way to a verdict's last token; nothing where verdicts are words."""
        return [()] if self.are_words else [tokens[:-1] for tokens in self.token_ids]


@dataclass(frozen=True, slots=True)
class QuestionTree:
    """Q tokens of the questions about one trajectory, parents before children.

    Args:
        token_ids (`np.ndarray`): `(Q,)`.
        position (`np.ndarray`): `(Q,)` position in the row, counted from the trajectory's first token.
        visible (`np.ndarray`): `(Q,)` tokens of the trajectory that the token sees.
        sees (`np.ndarray`): `(Q, Q)` bool, the token's ancestors and itself.
        read_at (`np.ndarray`): `(P,)` where a verdict's token is predicted: of each suffix, each verdict, each token.
        num_suffixes (`int`): T.
    """

    token_ids: np.ndarray
    position: np.ndarray
    visible: np.ndarray
    sees: np.ndarray
    read_at: np.ndarray
    num_suffixes: int

    @property
    def size(self) -> int:
        return len(self.token_ids)


def question_tree(row: ScoringRow, verdicts: Verdicts) -> QuestionTree:
    """Lays out the questions of one row; a node is known by `visible`, its ancestors and its token."""
    children: dict[tuple[int, int], int] = {}
    token_ids: list[int] = []
    position: list[int] = []
    visible: list[int] = []
    paths: list[list[int]] = []
    read_at: list[int] = []
    for suffix, seen in zip(row.suffixes, row.visible, strict=True):
        root = -1 - seen  # nodes are numbered from 0
        for k, branch in enumerate(verdicts.branches):
            parent, path = root, []
            for depth, token in enumerate((*suffix, *branch)):
                node = children.setdefault((parent, token), len(token_ids))
                if node == len(token_ids):
                    token_ids.append(token)
                    position.append(seen + depth)
                    visible.append(seen)
                path.append(node)
                parent = node
            paths.append(path)
            if verdicts.are_words:
                read_at.extend([path[-1]] * len(verdicts.token_ids))
            else:
                last = len(suffix) - 1
                read_at.extend(path[last : last + len(verdicts.token_ids[k])])
    sees = np.zeros((len(token_ids), len(token_ids)), dtype=bool)
    for path in paths:
        nodes = np.asarray(path)
        sees[nodes[:, None], nodes[None, :]] |= np.tri(len(nodes), dtype=bool)
    return QuestionTree(
        np.asarray(token_ids), np.asarray(position), np.asarray(visible), sees, np.asarray(read_at), len(row.suffixes)
    )


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups rows by length so that rows times the longest of a group stay within `max_tokens`, where one row does."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # Longest first, so the first row of a batch sets its width.
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
