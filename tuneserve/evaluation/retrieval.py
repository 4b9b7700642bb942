"""Search among the passages of labelled rows: which passages answer which query, and which are found.

Knows nothing of how vectors and scores are made.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneserve.checkpoint.rows import Row

# Passages found for a query, of which the metrics are.
DEPTH = 10
# Queries whose scores are computed together: with a million passages, 256 MB.
_TOGETHER = 64


@dataclass(frozen=True)
class Library:
    """What is searched: the queries of some rows, one a row, among all their passages, each once."""

    queries: list[str]
    passages: list[str]
    answers: list[frozenset[int]]  # the places of the passages that answer each query: of all rows with that query

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Library":
        """Returns the library of rows of embedding."""
        places, by_query, queries = dict[str, int](), dict[str, set[int]](), list[str]()
        for row in rows:
            queries.append(row["query"])
            for passage in (row["positive"], *row.get("negatives", ())):
                places.setdefault(passage, len(places))
            by_query.setdefault(row["query"], set()).add(places[row["positive"]])
        return cls(queries, list(places), [frozenset(by_query[query]) for query in queries])

    @property
    def relevant(self) -> list[int]:
        """How many passages answer each query."""
        return [len(places) for places in self.answers]

    def right(self, found: Iterable[Sequence[int]]) -> list[list[bool]]:
        """Returns whether each of the found passages answers its query."""
        return [[place in right for place in places] for places, right in zip(found, self.answers, strict=True)]


def search(queries: NDArray[Any], passages: NDArray[Any]) -> list[list[int]]:
    """Returns for each query's vector the places of the DEPTH nearest passages by cosine, the nearest first."""
    queries, passages = _unit(queries), _unit(passages)
    found = list[list[int]]()
    for start in range(0, len(queries), _TOGETHER):
        scores = queries[start : start + _TOGETHER] @ passages.T
        # Stable: of equal scores, the first passage is the better one, for every model.
        found += np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH].tolist()
    return found


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
