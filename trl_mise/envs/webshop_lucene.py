"""BM25 that gives Lucene's scores and order, over sparse postings: from a handful to millions of documents."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .webshop_analysis import count_terms

_BLOCK = 1 << 15  # documents that are turned over to the postings at once


class LuceneIndex:
    r"""Inverted index with the score of Lucene's `BM25Similarity`, to the last bit.

        score(q, d) = sum_t  c_t idf_t (1 - 1 / (1 + f_td / norm_d)),   norm_d = k1 (1 - b + b |d|~ / mean |d|)
        idf_t = log(1 + (N - n_t + 1/2) / (n_t + 1/2))

    with c_t the count of term t in the query, f_td in the document, n_t the number of documents with t, N the number
    of documents with any term, and |d|~ the length as it survives one byte: exact up to 40 terms, then with four
    significant bits. Terms are scored in float32, their sum is taken in float64. Ties go to the smaller name, as
    Anserini (the official searcher) breaks them.

    Args:
        names (`Sequence[str]`): names of the documents.
        documents (`Iterable[str]`): their texts, as many; read once, so that a generator will do.
        k1 (`float`), b (`float`): saturation of the term count, and of the document length.
    """

    def __init__(self, names: Sequence[str], documents: Iterable[str], k1: float = 0.9, b: float = 0.4) -> None:
        self.num_documents = len(names)
        self._tie_rank = np.empty(len(names), dtype=np.int32)  # place of a document among the sorted names
        # Lucene compares the bytes of UTF-8, whose order is that of the code points, as Python's.
        self._tie_rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names), dtype=np.int32)
        self._row: dict[str, int] = {}
        blocks, lengths = _read_blocks(documents, self._row)
        if len(lengths) != len(names):
            raise ValueError(f"names and documents must be as many, got {len(names)} and {len(lengths)}")
        self._start, self._documents, self._counts = _merge(blocks, len(self._row))
        self._num_found = int((lengths > 0).sum())
        mean = np.float32(lengths.sum() / max(self._num_found, 1))
        self._inverse_norm = _inverse_norms(lengths, mean, k1, b)

    def scores(self, query: str) -> NDArray[np.float32]:
        """`(N,)` score of every document; 0 where it shares no term with the query."""
        total = np.zeros(self.num_documents)
        for term, times in count_terms(query).items():
            row = self._row.get(term)
            if row is None:
                continue
            found = slice(self._start[row], self._start[row + 1])
            documents = self._documents[found]
            weight = np.float32(times) * self._idf(len(documents))
            ratio = self._counts[found].astype(np.float32) * self._inverse_norm[documents]
            total[documents] += weight - weight / (np.float32(1) + ratio)
        return total.astype(np.float32)

    def rank(self, query: str, limit: int) -> tuple[int, ...]:
        """Indices of at most `limit` documents with a positive score, best first."""
        scores = self.scores(query)
        found = np.flatnonzero(scores)
        if len(found) > limit:  # all that tie with the last place stay in
            least = np.partition(scores[found], len(found) - limit)[len(found) - limit]
            found = found[scores[found] >= least]
        order = np.lexsort((self._tie_rank[found], -scores[found]))[:limit]
        return tuple(int(document) for document in found[order])

    def _idf(self, found_in: int) -> np.float32:
        return np.float32(math.log(1 + (self._num_found - found_in + 0.5) / (found_in + 0.5)))


def quantize_length(length: int) -> int:
    """The length that Lucene remembers of `length` terms: exact below 40, then rounded down to four bits after 24."""
    above = length - 24
    if above < 16:
        return length
    shift = above.bit_length() - 4
    return 24 + (above >> shift << shift)


def _inverse_norms(lengths: NDArray[np.int64], mean: np.float32, k1: float, b: float) -> NDArray[np.float32]:
    """`(N,)` 1 / norm of every document, in Lucene's order of float32 operations."""
    k, share, one = np.float32(k1), np.float32(b), np.float32(1)
    known, place = np.unique(lengths, return_inverse=True)
    rounded = np.array([quantize_length(int(length)) for length in known], dtype=np.float32)
    inverse = one / (k * ((one - share) + share * rounded / max(mean, one / np.float32(1e9))))
    return inverse.astype(np.float32)[place.reshape(-1)]


_Block = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint16]]


def _read_blocks(documents: Iterable[str], rows: dict[str, int]) -> tuple[list[_Block], NDArray[np.int64]]:
    """(blocks of (terms, documents, counts), the length of every document); `rows` is filled with the terms met."""
    blocks: list[_Block] = []
    lengths: list[int] = []
    terms: list[int] = []
    places: list[int] = []
    counts: list[int] = []

    def close_block() -> None:
        order = np.argsort(np.asarray(terms, dtype=np.int32), kind="stable")
        capped = np.minimum(np.asarray(counts, dtype=np.int64), np.iinfo(np.uint16).max).astype(np.uint16)
        columns = (np.asarray(terms, dtype=np.int32)[order], np.asarray(places, dtype=np.int32)[order], capped[order])
        blocks.append(columns)
        for column in (terms, places, counts):
            column.clear()

    for place, document in enumerate(documents):
        found = count_terms(document)
        lengths.append(found.total())
        terms += [rows.setdefault(term, len(rows)) for term in found]
        places += [place] * len(found)
        counts += found.values()
        if place % _BLOCK == _BLOCK - 1:
            close_block()
    close_block()
    return blocks, np.asarray(lengths, dtype=np.int64)


def _merge(blocks: list[_Block], num_terms: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint16]]:
    """One table of postings (where each term starts, documents, counts), from blocks that are sorted by term."""
    per_block = [np.bincount(terms, minlength=num_terms) for terms, _, _ in blocks]
    start = np.zeros(num_terms + 1, dtype=np.int64)
    np.cumsum(sum(per_block), out=start[1:])
    documents = np.empty(start[-1], dtype=np.int32)
    counts = np.empty(start[-1], dtype=np.uint16)
    free = start[:-1].copy()  # the next free place of every term
    for (terms, places, times), here in zip(blocks, per_block, strict=True):
        first = np.cumsum(here) - here  # where each term starts in the block
        target = np.arange(len(terms)) + (free - first)[terms]
        documents[target] = places
        counts[target] = times
        free += here
    return start, documents, counts
