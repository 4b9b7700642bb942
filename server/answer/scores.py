"""The scores of passages: of their vectors, of their words, and both together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuneserve.evaluation.blending import blended
from tuneserve.server.answer.rows import Found, Row


@dataclass(frozen=True, slots=True)
class Scored:
    """A passage with its scores."""

    row: Row
    dense: float  # cosine
    keyword: float  # BM25
    score: float  # what it is ordered by
    ranking: float | None = None


def scored(vector: NDArray[np.float32], found: Sequence[Found], weight: float) -> list[Scored]:
    """Returns the passages that a query found, best first; `weight` is that of the words."""
    dense = np.array([one.row.vector @ vector for one in found], np.float32)
    keyword = np.array([one.keyword for one in found], np.float32)
    total = blended(dense, keyword, weight)
    # Equal scores in the same order each time.
    order = sorted(range(len(found)), key=lambda i: (-total[i], found[i].row.document, found[i].row.number))
    return [Scored(found[i].row, float(dense[i]), float(keyword[i]), float(total[i])) for i in order]


def ranked(found: Sequence[Scored], scores: Sequence[tuple[int, float]]) -> list[Scored]:
    """Returns passages in the order of a ranking model: their places in `found`, with scores, best first."""
    return [replace(found[index], score=score, ranking=score) for index, score in scores]
