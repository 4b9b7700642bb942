"""Intervals and paired tests: against scipy and closed forms, and, by simulation, how often they are wrong."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from tuneserve.evaluation import quality, significance
from tuneserve.evaluation.significance import Difference

Array = NDArray[np.float64]
Model = Callable[[np.random.Generator], tuple[Array, Array]]


def wrong(rows: int, errors: int) -> quality.RowSums:
    return [[float(number >= errors), 1.0] for number in range(rows)]


def pair(rows: int, gains: int, losses: int) -> tuple[quality.RowSums, quality.RowSums]:
    """Two models that differ on some rows, and are right on the others."""
    same = [[1.0, 1.0]] * (rows - gains - losses)
    right, false = [[1.0, 1.0]], [[0.0, 1.0]]
    return false * gains + right * losses + same, right * gains + false * losses + same


def likelihoods(chance: np.random.Generator, rows: int) -> Array:
    tokens = chance.integers(3, 60, rows).astype(float)
    return np.stack([-tokens * chance.gamma(4, 0.7, rows), tokens], axis=1)


def test_the_interval_of_an_accuracy_is_that_of_a_binomial() -> None:
    for errors in (0, 1, 80, 400):
        expected = stats.binomtest(400 - errors, 400).proportion_ci(method="wilson")
        assert significance.interval("accuracy", wrong(400, errors)) == pytest.approx(expected)
    low, high = significance.interval("accuracy", wrong(20, 0))
    assert high == 1
    assert 0.8 < low < 0.9


def test_the_interval_of_a_perplexity_is_scipys() -> None:
    table = likelihoods(np.random.default_rng(1), 80)
    places = np.arange(80)

    def perplexity(drawn: NDArray[np.int64], axis: int) -> Array:
        return significance.METRICS["perplexity"](table[drawn].sum(axis if axis >= 0 else drawn.ndim - 1))

    expected = stats.bootstrap((places,), perplexity, vectorized=True, method="BCa", rng=1).confidence_interval
    assert significance.interval("perplexity", table.tolist()) == pytest.approx(expected, rel=0.02)


def test_changed_rows_are_tested_exactly() -> None:
    for gains, losses, rows in [(0, 1, 100), (0, 4, 100), (0, 6, 100), (3, 11, 200), (40, 70, 1000)]:
        found = significance.compare("accuracy", *pair(rows, gains, losses))
        assert found.p_value == pytest.approx(stats.binomtest(gains, gains + losses).pvalue)
        assert found.test == "exact McNemar test"
        assert found.low < found.second - found.first < found.high
    # One flipped row is none that matters, nor are four.
    assert significance.compare("accuracy", *pair(100, 0, 1)).p_value == 1
    assert significance.compare("accuracy", *pair(100, 0, 4)).p_value == 0.125


def test_the_interval_of_an_accuracys_difference_agrees_with_its_test() -> None:
    for rows, gains, losses in itertools.product((20, 100), range(10), range(10)):
        found = significance.compare("accuracy", *pair(rows, gains, losses))
        assert found.is_significant == (not found.low <= 0 <= found.high)


@pytest.mark.parametrize(("gains", "losses"), [(3, 9), (0, 5), (8, 8), (12, 1)])
def test_the_interval_holds_what_the_score_test_accepts(gains: int, losses: int) -> None:
    """Its ends, by looking for the likeliest shares with each difference."""
    rows = 60
    found = significance.compare("accuracy", *pair(rows, gains, losses))

    def score(change: float) -> float:
        def unlikely(share: float) -> float:
            cells = (share + change, share, 1 - 2 * share - change)
            return -sum(
                count * math.log(cell)
                for count, cell in zip((gains, losses, rows - gains - losses), cells, strict=True)
                if count
            )

        bounds = max(0.0, -change) + 1e-9, (1 - change) / 2 - 1e-9
        share = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
        return float((gains - losses - rows * change) / math.sqrt(rows * (2 * share + change * (1 - change))))

    # Wider at most, where the exact test asks for it.
    assert score(found.low) >= 1.96 - 0.01
    assert score(found.high) <= -1.96 + 0.01
    assert min(abs(score(found.low) - 1.96), abs(score(found.high) + 1.96)) < 0.01


def test_a_permutation_test_is_scipys() -> None:
    chance = np.random.default_rng(4)
    tokens = np.full(12, 10.0)
    first, second = (np.stack([-chance.gamma(4, 5, 12), tokens], axis=1) for _ in range(2))
    expected = stats.permutation_test(
        (first[:, 0], second[:, 0]),
        lambda a, b, axis: b.mean(axis) - a.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    # All 4096 ways: with as many tokens in each row, the perplexities are ordered as the mean likelihoods.
    found = significance.compare("perplexity", first.tolist(), second.tolist())
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.test == "paired permutation test"


def test_the_interval_of_a_ratio_agrees_with_its_test() -> None:
    chance = np.random.default_rng(5)
    called = set()
    for rows, shift in itertools.product((6, 12, 40), np.linspace(-0.05, 0.05, 15)):
        first = likelihoods(chance, rows)
        second = first + np.stack([(chance.normal(shift, 0.05, rows)) * first[:, 1], np.zeros(rows)], axis=1)
        found = significance.compare("perplexity", first.tolist(), second.tolist())
        assert found.is_significant == (not found.low <= 0 <= found.high)
        called.add(found.is_significant)
    assert called == {False, True}


def test_pairs_tell_more_than_two_metrics() -> None:
    """The same difference: all rows changed one way, or many both ways."""
    assert significance.compare("accuracy", *pair(400, 0, 12)).is_significant
    assert not significance.compare("accuracy", *pair(400, 80, 92)).is_significant


METRICS = sorted(significance.METRICS)
# Of each metric: a row that is right, and one that is not.
GOOD = {"accuracy": [1.0, 1.0], "entity_f1": [2.0, 2.0, 2.0], "perplexity": [-1.0, 5.0], "pearson": [1.0] * 6}
BAD = {"accuracy": [0.0, 1.0], "entity_f1": [0.0, 1.0, 2.0], "perplexity": [-9.0, 5.0], "pearson": [1.0, *[2.0] * 5]}
GOOD["ndcg@10"], BAD["ndcg@10"] = [1.0, 1.0], [0.3, 1.0]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows", [1, 2, 20])
def test_rows_that_are_all_the_same_make_nothing_sure(metric: str, rows: int) -> None:
    low, high = significance.interval(metric, [GOOD[metric]] * rows)
    assert high - low > 0.1
    found = significance.compare(metric, [GOOD[metric]] * rows, [GOOD[metric]] * rows)
    assert found.p_value == 1
    # Where the likelihoods themselves are the same on many rows, the models are.
    assert found.low < 0 < found.high or (metric == "perplexity" and rows == 20)


@pytest.mark.parametrize("change", [0.5, 0.1, 0.01, 0.003])
def test_so_many_rows_without_a_change_show_as_much(change: float) -> None:
    rows = significance.rows_unseen(change)
    assert significance.unseen(rows) <= change < significance.unseen(rows - 1)
    assert significance.compare("accuracy", *pair(rows, 0, 0)).low == -significance.unseen(rows)


@pytest.mark.parametrize("metric", METRICS)
def test_one_row_shows_no_difference(metric: str) -> None:
    found = significance.compare(metric, [GOOD[metric]], [BAD[metric]])
    assert found.p_value == 1
    assert found.low <= found.second - found.first <= found.high
    assert found.low < 0 < found.high


@pytest.mark.parametrize("metric", ["perplexity", "pearson"])
def test_what_is_no_number_is_no_difference(metric: str) -> None:
    broken = [math.nan] * len(GOOD[metric])
    low, high = significance.interval(metric, [GOOD[metric], broken])
    assert math.isnan(low)
    assert math.isnan(high)
    found = significance.compare(metric, [GOOD[metric]] * 2, [GOOD[metric], broken])
    assert math.isnan(found.p_value)
    assert not found.is_significant


def test_scales_are_no_difference_of_correlations() -> None:
    chance = np.random.default_rng(2)
    x = chance.normal(size=50)
    y = x + chance.normal(size=50)
    found = significance.compare("pearson", quality.number_rows(x, y), quality.number_rows(x, 100 * y + 7))
    assert found.p_value == 1
    assert found.second - found.first == pytest.approx(0)


def test_every_headline_metric_is_that_of_quality() -> None:
    chance = np.random.default_rng(1)
    x, y = chance.normal(size=50), chance.normal(size=50)
    gold = [[("A", 0, 5)], [("B", 0, 1), ("A", 7, 9)], []]
    guess = [[("A", 0, 5)], [("A", 0, 1), ("A", 7, 9)], [("B", 2, 4)]]
    cases = {
        "pearson": (quality.regression(x, y), quality.number_rows(x, y)),
        "entity_f1": (quality.token_classification(gold, guess), quality.entity_rows(gold, guess)),
        "perplexity": (quality.generation(-30.0, 12), [[-10.0, 5.0], [-20.0, 7.0]]),
        "ndcg@10": quality.retrieval([[True], [False, True], [False]], [1, 2, 1]),
        "accuracy": (quality.sequence_classification(["a", "b"], ["a", "a"], ["a", "b"]), [[1.0, 1.0], [0.0, 1.0]]),
    }
    assert set(cases) == set(significance.METRICS)
    for name, (metrics, sums) in cases.items():
        found = float(significance.METRICS[name](np.asarray(sums, float).sum(0)))
        assert found == pytest.approx(metrics[name]), name
        low, high = significance.interval(name, sums)
        assert low <= found <= high


def test_the_ends_of_the_headline() -> None:
    metrics = {"accuracy": 0.9, "macro_f1": 0.8}
    assert significance.ends(metrics, wrong(100, 10)) == pytest.approx(
        {"accuracy_low": 0.8256, "accuracy_high": 0.9448}, abs=1e-4
    )
    assert significance.ends(metrics, []) == {}
    assert significance.ends({"perplexity": 9.0}, [[-11.0, 5.0]]) == {"perplexity_low": 1}


def simulate(
    metric: str, make: Model, times: int, change: Callable[[Difference], float] = lambda _: 0.0
) -> tuple[float, float]:
    """Returns how often two models are called different, and how often the interval holds the true `change`."""
    chance = np.random.default_rng(6)
    called = held = 0
    for seed in range(times):
        first, second = make(chance)
        found = significance.compare(metric, first.tolist(), second.tolist(), seed)
        called += found.is_significant
        held += found.low <= change(found) <= found.high
    return called / times, held / times


def answers(rows: int, flips: float, gains: float = 0.5) -> Model:
    """Of classifiers: what changes on a share of the rows, and which share of that for the better."""

    def make(chance: np.random.Generator) -> tuple[Array, Array]:
        changed, better = chance.random(rows) < flips, chance.random(rows) < gains
        right = np.where(changed, ~better, chance.random(rows) < 0.8)
        return tuple(np.stack([side, np.ones(rows)], axis=1) for side in (right, right ^ changed))  # type: ignore[return-value]

    return make


@pytest.mark.parametrize("flips", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("rows", [20, 100, 1000])
def test_false_alarms_of_an_accuracy(rows: int, flips: float) -> None:
    called, held = simulate("accuracy", answers(rows, flips), 2000)
    assert called <= 0.06
    assert held >= 0.94
    # Where all that changes is for the worse.
    _, held = simulate("accuracy", answers(rows, flips, gains=0), 1000, lambda _: -flips)
    assert held >= 0.93


def entities(rows: int, flips: float, after: float = 0.6) -> Model:
    """Of taggers: some rows are tagged anew, with another chance to find an entity."""

    def make(chance: np.random.Generator) -> tuple[Array, Array]:
        there, changed = chance.poisson(1.5, rows), chance.random(rows) < flips
        right = chance.binomial(there, 0.6)
        first = np.stack([right, right + chance.poisson(0.4, rows), there], axis=1)
        right = chance.binomial(there, after)
        anew = np.stack([right, right + chance.poisson(0.4, rows), there], axis=1)
        return first.astype(float), np.where(changed[:, None], anew, first).astype(float)

    return make


@pytest.mark.parametrize("flips", [0.05, 0.5])
@pytest.mark.parametrize("rows", [20, 200])
def test_false_alarms_of_a_search(rows: int, flips: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On some queries the right passage gets another rank, which has nothing to do with the first."""
    monkeypatch.setattr(significance, "SAMPLES", 500)

    def make(chance: np.random.Generator) -> tuple[Array, Array]:
        ranks, anew = chance.geometric(0.5, (2, rows))
        ranks = np.stack([ranks, np.where(chance.random(rows) < flips, anew, ranks)])
        gains = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0)
        return tuple(np.stack([side, np.ones(rows)], axis=1) for side in gains)  # type: ignore[return-value]

    called, held = simulate("ndcg@10", make, 500)
    assert called <= 0.07
    assert held >= 0.93


@pytest.mark.parametrize(("rows", "flips"), [(20, 0.2), (100, 0.01), (100, 0.2), (1000, 0.05)])
def test_false_alarms_of_entities(rows: int, flips: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "SAMPLES", 1000)
    called, held = simulate("entity_f1", entities(rows, flips), 200)
    assert called <= 0.06
    assert held >= 0.94
    # Of 1.5 entities a row 0.9 are found, and 0.3 where it is tagged anew.
    found = 0.9 - 0.6 * flips
    change = 2 * found / (found + 0.4 + 1.5) - 2 * 0.9 / (0.9 + 0.4 + 1.5)
    _, held = simulate("entity_f1", entities(rows, flips, after=0.2), 200, lambda _: change)
    assert held >= 0.9


@pytest.mark.parametrize("rows", [8, 20, 100])
def test_false_alarms_of_a_perplexity(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "SAMPLES", 1000)

    def make(chance: np.random.Generator, worse: float = 0.0) -> tuple[Array, Array]:
        first = likelihoods(chance, rows)
        noise = chance.normal(0, 0.1, rows) * np.sqrt(first[:, 1]) - worse * first[:, 1]
        return first, first + np.stack([noise, np.zeros(rows)], axis=1)

    called, held = simulate("perplexity", make, 2500)
    assert called <= 0.06
    assert held >= 0.94
    _, held = simulate(
        "perplexity", lambda chance: make(chance, 0.02), 1000, lambda found: math.expm1(0.02) * found.first
    )
    assert held >= 0.93


@pytest.mark.parametrize("rows", [20, 100])
def test_false_alarms_of_a_correlation(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "SAMPLES", 1000)

    def make(chance: np.random.Generator) -> tuple[Array, Array]:
        x = chance.normal(size=rows)
        y = x + 0.7 * chance.normal(size=rows)
        first, second = (quality.number_rows(x, y + 0.3 * chance.normal(size=rows)) for _ in range(2))
        return np.asarray(first), np.asarray(second)

    called, held = simulate("pearson", make, 300)
    assert called <= 0.07
    # A bootstrap of few rows is a little too short.
    assert held >= 0.88


def test_the_mean_of_rounds_is_students_on_the_logarithms():
    values = [1.1, 0.9, 1.3, 1.25, 1.0]
    expected = stats.ttest_1samp(np.log(values), 0).confidence_interval(0.95)
    mean, low, high = significance.geometric(values)
    assert mean == pytest.approx(math.prod(values) ** (1 / 5))
    assert (low, high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    one = significance.geometric([3.0])
    assert one[0] == pytest.approx(3.0)
    assert math.isnan(one[1])
    assert math.isnan(one[2])
