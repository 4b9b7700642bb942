"""How sure a measured quality is: intervals by the bootstrap over its rows, and two models compared on the same rows.

Every headline metric is a function of sums over the rows (`quality.row_sums` says of which), so that a sample of rows
is a row of weights, and ten thousand samples are a matrix product.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SAMPLES = 10_000
# Of the samples, the share that the interval holds.
CONFIDENCE = 0.95
_CHUNK = 500


def _accuracy(sums: Array) -> Array:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _f1(sums: Array) -> Array:
    right, predicted, expected = sums[..., 0], sums[..., 1], sums[..., 2]
    return np.asarray(2 * right / np.maximum(predicted + expected, 1))


def _perplexity(sums: Array) -> Array:
    return np.asarray(np.exp(np.minimum(-sums[..., 0] / np.maximum(sums[..., 1], 1), 700.0)))


def _pearson(sums: Array) -> Array:
    count, x, y, xx, yy, xy = (sums[..., place] for place in range(6))
    spread = np.sqrt(np.maximum(xx - x * x / count, 0) * np.maximum(yy - y * y / count, 0))
    return np.where(spread > 0, (xy - x * y / count) / np.where(spread > 0, spread, 1), 0.0)


METRICS: dict[str, Callable[[Array], Array]] = {
    "accuracy": _accuracy,
    "entity_f1": _f1,
    "perplexity": _perplexity,
    "pearson": _pearson,
}


@dataclass(frozen=True)
class Difference:
    """Of one metric, between two models on the same rows: the second minus the first."""

    first: float
    second: float
    low: float
    high: float
    p_value: float  # that a difference as large comes of the choice of the rows; two-sided

    @property
    def is_significant(self) -> bool:
        """Whether it is more than the choice of the rows explains."""
        return self.p_value < 1 - CONFIDENCE


def interval(metric: str, rows: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """Returns what lies around the metric in CONFIDENCE of the samples. `rows` are `quality.row_sums`."""
    table = np.asarray(rows, float)
    values = np.concatenate([METRICS[metric](weights @ table) for weights in _samples(len(table), seed)])
    return _middle(values)


def compare(
    metric: str, first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int = 0
) -> Difference:
    """Compares two models row by row: each sample has the same rows of both."""
    tables = np.asarray(first, float), np.asarray(second, float)
    of = METRICS[metric]
    before, after = (float(of(table.sum(0))) for table in tables)
    differences = np.concatenate(
        [of(weights @ tables[1]) - of(weights @ tables[0]) for weights in _samples(len(tables[0]), seed)]
    )
    # One more than counted, of both: no number of samples shows a chance of none.
    sides = [(1 + np.count_nonzero(side)) / (1 + SAMPLES) for side in (differences <= 0, differences >= 0)]
    return Difference(before, after, *_middle(differences), min(1.0, 2 * min(sides)))


def _samples(rows: int, seed: int) -> Iterator[Array]:
    """Yields how often each row is in each sample, some samples at a time."""
    chance = np.random.default_rng(seed)
    for _ in range(SAMPLES // _CHUNK):
        yield chance.multinomial(rows, np.full(rows, 1 / rows), size=_CHUNK).astype(float)


def _middle(values: Array) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)
