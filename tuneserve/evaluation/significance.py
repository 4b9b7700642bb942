"""Statistical significance: the interval of a headline metric, and the comparison of two models on the same rows.

| metric | test of a difference | interval of the difference | interval of one model |
|---|---|---|---|
| accuracy | exact McNemar | score (Tango 1998), hull with the exact test's | Wilson |
| entity_f1 | paired permutation | the same, of the changes of each row | BCa bootstrap |
| ndcg@10 | the same | the same | the same |
| perplexity | paired permutation | the same test turned around (Hartigan 1969), of the ratio | BCa bootstrap |
| pearson | paired permutation | BCa bootstrap | BCa bootstrap |

Every headline metric is a function of sums over the rows (see `quality`), so that thousands of samples of the rows can
be computed as a matrix product. A permutation swaps the answers of both models on some rows.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Array = NDArray[np.float64]
Interval = tuple[float, float]

SAMPLES = 10_000
# Of all intervals here, two-sided.
CONFIDENCE = 0.95
_TAIL = (1 - CONFIDENCE) / 2
_Z = float(special.ndtri(1 - _TAIL))
# Bound of rows times samples: with many rows there are fewer samples, so that they take only seconds.
_WORK = 50_000_000
# Numbers in one block of samples: 40 MB.
_BLOCK = 5_000_000
# With fewer rows, the spread between rows can't be estimated.
_FEW = 5
# If the rows show no spread, the interval of metrics that are not shares is their whole range.
_RANGE = {"perplexity": (1.0, math.inf), "pearson": (-1.0, 1.0)}
_EXACT, _PERMUTATION = "exact McNemar test", "paired permutation test"


def _mean(sums: Array) -> Array:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _f1(sums: Array) -> Array:
    right, predicted, expected = sums[..., 0], sums[..., 1], sums[..., 2]
    return np.asarray(2 * right / np.maximum(predicted + expected, 1))


def _perplexity(sums: Array) -> Array:
    return np.asarray(np.exp(np.minimum(-sums[..., 0] / np.maximum(sums[..., 1], 1), 700.0)))


def _pearson(sums: Array) -> Array:
    count, x, y, xx, yy, xy = (sums[..., place] for place in range(6))
    spread = np.sqrt(np.maximum(xx - x * x / count, 0) * np.maximum(yy - y * y / count, 0))
    return np.where(spread == 0, 0.0, (xy - x * y / count) / np.where(spread == 0, 1, spread))


METRICS: dict[str, Callable[[Array], Array]] = {
    "accuracy": _mean,
    "ndcg@10": _mean,
    "entity_f1": _f1,
    "perplexity": _perplexity,
    "pearson": _pearson,
}


@dataclass(frozen=True)
class Difference:
    """The difference of a metric between two models on the same rows: the second minus the first.

    For perplexity, `low` and `high` are computed from the ratio: (ratio - 1) * first. NaN if a metric is NaN.
    """

    first: float
    second: float
    low: float
    high: float
    p_value: float  # two-sided
    test: str

    @property
    def is_significant(self) -> bool:
        """Whether the difference is larger than chance explains."""
        return self.p_value < 1 - CONFIDENCE


def interval(metric: str, rows: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """Returns the ends of the metric's 95 % interval; `rows` are `quality.row_sums`.

    NaN if the metric is; an end may be infinite, if there are too few rows or all are the same.
    """
    table = _table(metric, rows)
    value = float(METRICS[metric](table.sum(0)))
    if not math.isfinite(value):
        return math.nan, math.nan
    if metric == "accuracy":
        return wilson(value, len(table))
    ends = _bca(METRICS[metric], table, seed)
    return ends or _RANGE.get(metric) or wilson(value, len(table))


def ends(metrics: Mapping[str, float], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """Returns the ends of the headline metric's interval as NAME_low and NAME_high, if finite."""
    [name] = metrics.keys() & METRICS
    found = zip(("low", "high"), interval(name, rows), strict=True) if len(rows) else ()
    return {f"{name}_{end}": value for end, value in found if math.isfinite(value)}


def compare(
    metric: str, first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int = 0
) -> Difference:
    """Compares two models row by row, as this module's docstring says."""
    tables = _table(metric, first), _table(metric, second)
    of = METRICS[metric]
    before, after = (float(of(table.sum(0))) for table in tables)
    test = _EXACT if metric == "accuracy" else _PERMUTATION
    if not (math.isfinite(before) and math.isfinite(after)):
        return Difference(before, after, math.nan, math.nan, math.nan, test)
    if metric == "perplexity":
        low, high, p_value = _ratio(*tables, seed)
        return Difference(before, after, before * low, before * high, p_value, test)
    if metric == "pearson":
        ends = _bca(lambda sums: of(sums[..., 6:]) - of(sums[..., :6]), np.hstack(tables), seed)
        return Difference(before, after, *(ends or (-2.0, 2.0)), _permuted(of, *tables, seed), test)
    changes, counted = _changes(metric, *tables)
    if metric == "accuracy":
        gains, losses = np.count_nonzero(changes > 0), np.count_nonzero(changes < 0)
        p_value = float(stats.binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0
    else:
        p_value = _permuted(of, *tables, seed)
    return Difference(before, after, *_of_changes(changes, counted), p_value, test)


def error_rise(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int = 0
) -> tuple[float, float, float]:
    """Returns how much larger the second model's root mean square error of a regression is, and the interval's ends.

    The unit is the standard deviation of the expected numbers; rows are `quality.number_rows`. Correlation does not
    show such errors: numbers that are all too large correlate just as well.
    """
    table = np.hstack([np.asarray(first, float), np.asarray(second, float)])
    spread = float(table[:, 1].std()) or 1.0

    def rise(sums: Array) -> Array:
        return np.asarray(_error(sums[..., 6:]) - _error(sums[..., :6])) / spread

    low, high = _bca(rise, table, seed) or (-math.inf, math.inf)
    return float(rise(table.sum(0))), low, high


def _error(sums: Array) -> Array:
    count, _, _, xx, yy, xy = (sums[..., place] for place in range(6))
    return np.asarray(np.sqrt(np.maximum(xx - 2 * xy + yy, 0) / count))


def geometric(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the geometric mean of numbers above 0, such as ratios and rates of several rounds, and the ends of its
    interval: Student's t on the logarithms. For a single number the ends are NaN.
    """
    logs = np.log(np.asarray(values, float))
    middle = float(logs.mean())
    if len(logs) < 2:
        return math.exp(middle), math.nan, math.nan
    half = float(stats.t.ppf(1 - _TAIL, len(logs) - 1) * stats.sem(logs))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def wilson(share: float, rows: int) -> Interval:
    """Returns the ends of a share's score interval (Wilson 1927): 0 to 1 if there are no rows."""
    middle = (rows * share + _Z**2 / 2) / (rows + _Z**2)
    half = _Z / (rows + _Z**2) * math.sqrt(rows * share * (1 - share) + _Z**2 / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def unseen(rows: int) -> float:
    """Returns how much a share may have changed if no row changed: the end of its interval."""
    return float(_Z**2 / (rows + _Z**2))


def rows_unseen(change: float) -> int:
    """Returns the smallest number of rows with `unseen` of at most `change`, which is above 0."""
    return max(1, math.ceil(_Z**2 * (1 - change) / change - 1e-9))


def _table(metric: str, rows: Sequence[Sequence[float]]) -> Array:
    table = np.asarray(rows, float)
    if metric != "pearson":
        return table
    # Correlation ignores scale and offset, and two models may use different ones: both columns are standardized.
    x, y = (_standard(column) for column in (table[:, 1], table[:, 2]))
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def _standard(column: Array) -> Array:
    spread = column.std()
    return np.asarray((column - column.mean()) / (spread if spread > 0 else 1.0))


def _changes(metric: str, first: Array, second: Array) -> tuple[Array, int]:
    """Returns each row's contribution to the difference of two shares, which is their mean, and the number of rows."""
    if METRICS[metric] is _mean:
        return second[:, 0] - first[:, 0], len(first)
    # Linearized around the mean of both F1, over the mean of their denominators, the sum is exactly the difference.
    over = [table[:, 1] + table[:, 2] for table in (first, second)]
    counted = max(1, int(np.count_nonzero(over[0] + over[1])))
    middle = (_f1(first.sum(0)) + _f1(second.sum(0))) / 2
    whole = max(1.0, (over[0].sum() + over[1].sum()) / 2)
    changes = 2 * (second[:, 0] - first[:, 0]) - middle * (over[1] - over[0])
    return np.asarray(changes * counted / whole), counted


def _of_changes(changes: Array, rows: int) -> Interval:
    """Returns the interval of the changes' mean over `rows`, most of which did not change.

    Unequal changes are replaced by fewer equal ones with the same sum and sum of squares, as in Fay and Feuer (1997)
    for Poisson counts.
    """
    total = np.abs(changes).sum()
    size = (changes**2).sum() / total if total else 1.0
    gains, losses = (float(side.sum() / size) for side in (changes[changes > 0], -changes[changes < 0]))
    score, exact = _tango(gains, losses, rows), _conditional(gains, losses, rows)
    low, high = min(score[0], exact[0]) * size, max(score[1], exact[1]) * size
    return max(-1.0, low), min(1.0, high)


def _tango(gains: float, losses: float, rows: int) -> Interval:
    """The score interval of a difference of paired shares (Tango 1998)."""
    if not gains + losses:
        return -unseen(rows), unseen(rows)
    found = (gains - losses) / rows

    def off(change: float) -> float:
        b = -gains - losses + (2 * rows - gains + losses) * change
        root = math.sqrt(max(0.0, b * b + 8 * rows * losses * change * (1 - change)))
        variance = rows * ((root - b) / (2 * rows) + change * (1 - change))
        return float((gains - losses - rows * change) ** 2 - _Z**2 * variance)

    low = optimize.brentq(off, -1.0, found) if found > -1 else -1.0
    return float(low), float(optimize.brentq(off, found, 1.0) if found < 1 else 1.0)


def _conditional(gains: float, losses: float, rows: int) -> Interval:
    """The interval that contains 0 exactly if McNemar's exact test is not significant: from the share of gains among
    the changed rows.
    """
    low = special.betaincinv(gains, losses + 1, _TAIL) if gains else 0.0
    high = special.betaincinv(gains + 1, losses, 1 - _TAIL) if losses else 1.0
    changed = (gains + losses) / rows
    return float((2 * low - 1) * changed), float((2 * high - 1) * changed)


def _ratio(first: Array, second: Array, seed: int) -> tuple[float, float, float]:
    """Returns the interval of the ratio of two perplexities, minus 1, and the p-value.

    The share of all subsets of the rows whose ratio is below a value is the p-value of the one-sided permutation test
    of that value. So its quantiles are the interval's ends (Hartigan 1969).
    """
    counts = (first[:, 1] > 0) & (second[:, 1] > 0)
    first, second = first[counts], second[counts]
    if not len(first):
        return -1.0, math.inf, 1.0
    values = []
    for chosen in _subsets(len(first), seed):
        a, b = chosen @ first, chosen @ second
        values.append(a[:, 0] / a[:, 1] - b[:, 0] / b[:, 1])
    found = np.sort(np.expm1(np.concatenate(values)))
    outside = math.floor(_TAIL * (1 + len(found)))
    low, high = (float(found[outside - 1]), float(found[-outside])) if outside else (-1.0, math.inf)
    side = min(np.count_nonzero(found <= 0), np.count_nonzero(found >= 0))
    return low, high, min(1.0, 2 * (1 + side) / (1 + len(found)))


def _permuted(of: Callable[[Array], Array], first: Array, second: Array, seed: int) -> float:
    """Returns the p-value of a difference: the share of permutations in which it is at least as large."""
    swaps = (second - first)[(first != second).any(1)]
    if not len(swaps):
        return 1.0
    sums = first.sum(0), second.sum(0)
    least = abs(of(sums[1]) - of(sums[0])) * (1 - 1e-9)
    as_large = count = 1  # the permutation that swaps nothing
    for chosen in _subsets(len(swaps), seed):
        moved = chosen @ swaps
        as_large += int(np.count_nonzero(np.abs(of(sums[1] - moved) - of(sums[0] + moved)) >= least))
        count += len(chosen)
    return as_large / count


def _subsets(rows: int, seed: int) -> Iterator[Array]:
    """Yields masks of subsets of the rows: all subsets, or SAMPLES random ones; never the empty one."""
    block = max(1, _BLOCK // rows)
    if 2**rows <= SAMPLES:
        yield ((np.arange(1, 2**rows)[:, None] >> np.arange(rows)) & 1).astype(float)
        return
    chance, samples = np.random.default_rng(seed), _samples(rows)
    for start in range(0, samples, block):
        drawn = chance.integers(0, 2, (min(block, samples - start), rows), dtype=np.int8)
        yield drawn[drawn.any(1)].astype(float)


def _samples(rows: int) -> int:
    return min(SAMPLES, max(1000, _WORK // rows))


def _bca(of: Callable[[Array], Array], table: Array, seed: int) -> Interval | None:
    """Returns the interval of the bias-corrected and accelerated bootstrap (Efron 1987); None if samples don't
    differ.
    """
    rows, total = len(table), table.sum(0)
    if rows < _FEW:
        return None
    apart = of(total - table)
    apart = apart.mean() - apart
    squares = (apart**2).sum()
    value = of(total)
    if not math.sqrt(squares) > 1e-9 * (1 + abs(float(value))):
        return None
    acceleration = (apart**3).sum() / (6 * squares**1.5)
    chance, block, samples, values = np.random.default_rng(seed), max(1, _BLOCK // table.size), _samples(rows), []
    for start in range(0, samples, block):
        drawn = chance.integers(0, rows, (min(block, samples - start), rows))
        values.append(of(table[drawn].sum(1)))
    found = np.concatenate(values)
    below = (np.count_nonzero(found < value) + np.count_nonzero(found <= value)) / (2 * len(found))
    bias = special.ndtri(np.clip(below, 1 / len(found), 1 - 1 / len(found)))
    normal = bias + np.array([-_Z, _Z])
    low, high = np.quantile(found, special.ndtr(bias + normal / (1 - acceleration * normal)))
    return float(low), float(high)
