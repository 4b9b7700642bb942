import math

import numpy as np
import pytest
from scipy import stats

from tuneserve.benchmarks.claims import MIN_ROUNDS, Claim, Interval, Ratio, interval, ratios

AT_LEAST = Claim("", "a", "b", at_least=0.95)
AT_MOST = Claim("", "a", "b", at_most=0.95)


def test_a_ratio_is_of_one_round() -> None:
    measured = {"a": [10.0, 20.0, 90.0], "b": [10.0, 10.0, 100.0]}
    [ratio] = ratios([Claim("a to b", "a", "b")], measured)
    # The rates' own means would give another one.
    assert ratio.interval.mean == pytest.approx((1.0 * 2.0 * 0.9) ** (1 / 3))
    assert ratio.interval.rounds == 3


def test_the_interval_is_student_s_t_on_logarithms() -> None:
    values = [0.9, 1.0, 1.3, 1.1, 0.95]
    found = interval(values)
    expected = stats.ttest_1samp(np.log(values), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    # So that a to b and b to a say the same.
    other = interval([1 / value for value in values])
    assert (1 / other.high, 1 / other.low) == pytest.approx((found.low, found.high))


def test_one_round_has_no_interval() -> None:
    assert interval([3.0]) == Interval(3.0, None, None, 1)
    assert interval([3.0]).text(1) == "3.0 (one round)"
    assert interval([2.0, 2.0]).text(2) == "2.00 (2.00 to 2.00)"


@pytest.mark.parametrize(
    ("low", "high", "at_least", "at_most"),
    [
        (0.96, 1.2, "kept", "not kept"),
        (0.95, 1.2, "kept", "not shown"),
        (0.94, 1.2, "not shown", "not shown"),
        (0.8, 0.95, "not shown", "kept"),
        (0.8, 0.94, "not kept", "kept"),
    ],
)
def test_a_promise_is_of_the_whole_interval(low: float, high: float, at_least: str, at_most: str) -> None:
    found = Interval(1.0, low, high, MIN_ROUNDS)
    assert Ratio(AT_LEAST, found).verdict == at_least
    assert Ratio(AT_MOST, found).verdict == at_most
    assert Ratio(Claim("", "a", "b"), found).verdict is None


def test_few_rounds_show_a_ratio_and_keep_no_promise() -> None:
    measured = {"a": [2.0] * 14, "b": [1.0] * 14}
    [few] = ratios([AT_LEAST], measured)
    assert few.interval.low == 2
    assert (few.verdict, few.to_json()["verdict"]) == ("not shown", "not shown")
    [enough] = ratios([AT_LEAST], {name: [*values, values[0]] for name, values in measured.items()})
    assert enough.verdict == "kept"


def test_a_promise_that_is_not_true_is_seldom_kept() -> None:
    rng, wrong = np.random.default_rng(0), 0
    # Just not true: every round is a little off the bound's own value, as rounds on shared cores are.
    for _ in range(2000):
        noise = np.exp(rng.normal(0, 0.1, MIN_ROUNDS)) * 0.9499
        [ratio] = ratios([AT_LEAST], {"a": noise.tolist(), "b": [1.0] * MIN_ROUNDS})
        wrong += ratio.verdict == "kept"
    assert wrong / 2000 <= 0.035


def test_what_did_not_run_makes_no_ratio() -> None:
    claims = [Claim("", "a", "b", at_least=1), Claim("", "a", "c", at_least=1)]
    assert [ratio.claim for ratio in ratios(claims, {"a": [1.0], "c": [1.0], "d": []})] == claims[1:]
    assert ratios([Claim("", "a", "d")], {"a": [], "d": []}) == []


def test_json() -> None:
    [ratio] = ratios([Claim("x", "a", "b", at_most=0.7)], {"a": [2.0] * 15, "b": [3.0] * 15})
    assert ratio.to_json() == {
        "name": "x",
        "ratio": 0.6667,
        "interval": [0.6667, 0.6667],
        "rounds": 15,
        "promise": "≤ 0.7",
        "verdict": "kept",
    }
    [once] = ratios([Claim("x", "a", "b")], {"a": [2.0], "b": [3.0]})
    assert (once.to_json()["interval"], once.to_json()["verdict"]) == (None, None)
