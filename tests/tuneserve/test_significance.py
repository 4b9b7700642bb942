"""Intervals and paired tests against what is known of them in closed form, or by scipy and seqeval."""

import math
import random

import numpy as np
import pytest

from tuneserve import quality, significance


def wrong(rows: int, errors: int) -> quality.RowSums:
    return [[float(number >= errors), 1.0] for number in range(rows)]


def test_the_interval_of_an_accuracy_is_that_of_a_binomial() -> None:
    low, high = significance.interval("accuracy", wrong(400, 80))
    error = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert (low, high) == pytest.approx((0.8 - error, 0.8 + error), abs=0.005)


def test_a_model_does_not_differ_from_itself() -> None:
    found = significance.compare("accuracy", wrong(100, 20), wrong(100, 20))
    assert found.p_value == 1
    assert not found.is_significant
    assert found.low == found.high == 0


def test_pairs_tell_more_than_two_accuracies() -> None:
    """The same difference: all rows changed one way, or many both ways."""
    first = wrong(400, 80)
    same = significance.compare("accuracy", first, wrong(400, 92))
    assert same.second - same.first == pytest.approx(-0.03)
    assert same.is_significant
    others = [[1.0, 1.0]] * 80 + [[0.0, 1.0]] * 92 + [[1.0, 1.0]] * 228
    assert not significance.compare("accuracy", first, others).is_significant


def test_the_chance_of_an_error_is_as_told() -> None:
    """Of models that are equally good, about one pair in twenty is called different."""
    chance = random.Random(3)

    def model() -> quality.RowSums:
        return [[float(chance.random() < 0.8), 1.0] for _ in range(150)]

    called = sum(significance.compare("accuracy", model(), model(), seed).is_significant for seed in range(60))
    assert called <= 9


def test_every_headline_metric_is_that_of_quality() -> None:
    chance = np.random.default_rng(1)
    x, y = chance.normal(size=50), chance.normal(size=50)
    gold = [["B-A", "I-A", "O"], ["B-B", "O", "B-A"], ["O", "O", "O"]]
    guess = [["B-A", "I-A", "O"], ["B-A", "O", "B-A"], ["O", "B-B", "O"]]
    cases = {
        "pearson": (quality.regression(x, y), quality.number_rows(x, y)),
        "entity_f1": (quality.token_classification(gold, guess), quality.entity_rows(gold, guess)),
        "perplexity": (quality.generation(-30.0, 12), [[-10.0, 5.0], [-20.0, 7.0]]),
        "accuracy": (quality.sequence_classification(["a", "b"], ["a", "a"], ["a", "b"]), [[1.0, 1.0], [0.0, 1.0]]),
    }
    assert set(cases) == set(significance.METRICS)
    for name, (metrics, sums) in cases.items():
        found = float(significance.METRICS[name](np.asarray(sums, float).sum(0)))
        assert found == pytest.approx(metrics[name]), name
        low, high = significance.interval(name, sums)
        assert low <= found <= high
