"""Ranked retrieval for the web shop: BM25 with the parameters of the official index (k1 = 0.9, b = 0.4)."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_TERM = re.compile(r"[a-z0-9]+")


def search_terms(text: str) -> list[str]:
    """Lower-case runs of letters and digits."""
    return _TERM.findall(text.lower())


class BM25Index:
    r"""BM25 over short documents, as one dense matrix of term weights.

        w(t, d) = log(1 + (N - n_t + 1/2) / (n_t + 1/2)) * f / (f + k1 (1 - b + b |d| / mean |d|))

    with f the count of t in d, n_t the number of documents with t, and score(q, d) the sum of w(t, d) over the query's
    terms, with repetition. The factor (k1 + 1) of the textbook is left out as in Lucene: it does not change the order.
    Lucene's one-byte quantisation of |d| and its stemming are not done here: this is the search of the generated shop,
    which results were measured on; that of the official files is `webshop_lucene.LuceneIndex`.

    Args:
        documents (`Sequence[str]`): N texts.
        k1 (`float`), b (`float`): saturation of the term count, and of the document length.
    """

    def __init__(self, documents: Sequence[str], k1: float = 0.9, b: float = 0.4) -> None:
        counts = [Counter(search_terms(document)) for document in documents]
        self.num_documents = len(counts)
        self._row = {term: row for row, term in enumerate(sorted(set().union(*counts)))}
        frequency = np.zeros((len(self._row), self.num_documents))  # (V, N)
        for column, count in enumerate(counts):
            for term, times in count.items():
                frequency[self._row[term], column] = times
        found_in = (frequency > 0).sum(axis=1, keepdims=True)  # (V, 1)
        length = frequency.sum(axis=0)  # (N,)
        norm = k1 * (1 - b + b * length / max(length.mean(), 1e-9)) if counts else length
        idf = np.log1p((self.num_documents - found_in + 0.5) / (found_in + 0.5))
        self._weights = idf * frequency / (frequency + norm)

    def scores(self, query: str) -> np.ndarray:
        """`(N,)` score of every document; 0 where it shares no term with the query."""
        # Sorted, so that the order of the words cannot change a score by a rounding error and with it the ranking.
        rows = sorted(self._row[term] for term in search_terms(query) if term in self._row)
        return self._weights[rows].sum(axis=0) if rows else np.zeros(self.num_documents)

    def rank(self, query: str, limit: int) -> tuple[int, ...]:
        """Indices of at most `limit` documents with a positive score, best first; ties in document order."""
        scores = self.scores(query)
        order = np.argsort(-scores, kind="stable")[:limit]
        return tuple(int(document) for document in order if scores[document] > 0)
