"""Search among the passages of labelled rows: which passages answer which query, and which are found.

Knows nothing of how vectors and scores are made.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneserve.checkpoint.rows import Row

# Passages found for a query, of which the metrics are.
DEPTH = 10
# Passages that a model for ranking is given with a query, at least.
SHORT = 20
# Queries whose scores are computed together: with a million passages, 256 MB.
_TOGETHER = 64


@dataclass(frozen=True)
class Library:
    """What is searched: the queries of some rows, one a row, among all their passages, each once."""

    queries: list[str]
    passages: list[str]
    answers: list[frozenset[int]]  # the places of the passages that answer each query: of all rows with that query
    own: list[frozenset[int]]  # these, and the row's negatives

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Library":
        """Returns the library of rows of embedding or ranking."""
        places, by_query, queries, wrong = dict[str, int](), dict[str, set[int]](), list[str](), list[set[int]]()
        for row in rows:
            right, *others = (
                places.setdefault(text, len(places)) for text in (row["positive"], *row.get("negatives", ()))
            )
            by_query.setdefault(row["query"], set()).add(right)
            queries.append(row["query"])
            wrong.append(set(others))
        answers = [frozenset(by_query[query]) for query in queries]
        own = [right | others for right, others in zip(answers, wrong, strict=True)]
        return cls(queries, list(places), answers, own)

    @property
    def relevant(self) -> list[int]:
        """How many passages answer each query."""
        return [len(places) for places in self.answers]

    def right(self, found: Iterable[Sequence[int]]) -> list[list[bool]]:
        """Returns whether each of the found passages answers its query."""
        return [[place in right for place in places] for places, right in zip(found, self.answers, strict=True)]

    @cached_property
    def shortlists(self) -> list[list[int]]:
        """For each query, the places of the passages to rank: its own, and the most similar others, so that there are
        SHORT, if there are as many.
        """
        others = similar(self, SHORT, self.own)
        found = zip(self.own, others, strict=True)
        return [sorted(own.union(more[: max(0, SHORT - len(own))])) for own, more in found]

    @property
    def by_letters(self) -> list[list[int]]:
        """The best of the shortlists by similar letters: what a model for ranking must be better than."""
        found = similar(self, DEPTH, [()] * len(self.queries))
        return [[one for one in some if one in short] for some, short in zip(found, self.shortlists, strict=True)]

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """Each query with each passage of its shortlist."""
        for query, places in zip(self.queries, self.shortlists, strict=True):
            yield from ((query, self.passages[place]) for place in places)

    def ranked(self, scores: Iterable[float]) -> list[list[int]]:
        """Returns the shortlists in the order of the scores of `pairs`, the best passage first."""
        given, found = iter(scores), list[list[int]]()
        for places in self.shortlists:
            of = {place: next(given) for place in places}
            # Stable: of equal scores, the first passage is the better one, for every model.
            found.append(sorted(places, key=of.__getitem__, reverse=True))
        return found


def search(queries: NDArray[Any], passages: NDArray[Any]) -> list[list[int]]:
    """Returns for each query's vector the places of the DEPTH nearest passages by cosine, the nearest first."""
    queries, passages = _unit(queries), _unit(passages)
    found = list[list[int]]()
    for start in range(0, len(queries), _TOGETHER):
        scores = queries[start : start + _TOGETHER] @ passages.T
        found += np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH].tolist()
    return found


def similar(library: Library, count: int, known: Sequence[Collection[int]]) -> list[list[int]]:
    """Returns for each query the places of the `count` passages with the most similar letters (TF-IDF of two to four,
    so for any language), without those that are `known`.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, dtype=np.float32)
    passages = vectorizer.fit_transform(library.passages)
    queries, found = vectorizer.transform(library.queries), list[list[int]]()
    for start in range(0, len(library.queries), _TOGETHER):
        scores = (queries[start : start + _TOGETHER] @ passages.T).toarray()
        for line, without in zip(scores, known[start:], strict=False):
            line[list(without)] = -1
            found.append([place for place in np.argsort(-line, kind="stable")[:count].tolist() if line[place] >= 0])
    return found


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
