"""The scores of passages: of their vectors, of their words, and both together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuneserve.server.answer.rows import Found, Row


@dataclass(frozen=True, slots=True)
class Scored:
    """A passage with its scores."""

    row: Row
    dense: float  # cosine
    keyword: float  # BM25
    score: float  # what it is ordered by
    ranking: float | None = None


def blended(vector: NDArray[np.float32], found: Sequence[Found], weight: float) -> list[Scored]:
    """Returns the passages that a query found, best first, by the weighted sum of both scores; `weight` is that of the
    words. Each is scaled to 0 to 1 among these passages: how much cosines differ depends on the model, and BM25 has no
    upper bound.
    """
    if not found:
        return []
    dense = np.stack([one.row.vector for one in found]) @ vector
    keyword = np.array([one.keyword for one in found], np.float32)
    total = (1 - weight) * _scaled(dense, dense.min()) + weight * _scaled(keyword, 0.0)
    # Equal scores in the same order each time.
    order = sorted(range(len(found)), key=lambda i: (-total[i], found[i].row.document, found[i].row.number))
    return [Scored(found[i].row, float(dense[i]), float(keyword[i]), float(total[i])) for i in order]


def ranked(found: Sequence[Scored], scores: Sequence[tuple[int, float]]) -> list[Scored]:
    """Returns passages in the order of a ranking model: their places in `found`, with scores, best first."""
    return [replace(found[index], score=score, ranking=score) for index, score in scores]


def _scaled(values: NDArray[np.float32], least: float) -> NDArray[np.float32]:
    spread = values.max() - least
    return (values - least) / spread if spread > 0 else np.ones_like(values) * (values > 0)
