"""The highest rate that keeps its promise."""

import pytest

from tuneserve.benchmarks.serving.load.calls import Served
from tuneserve.benchmarks.serving.load.result import Result
from tuneserve.benchmarks.serving.load.search import highest
from tuneserve.benchmarks.serving.load.settings import Settings
from tuneserve.errors import StepFailed

from ..conftest import settings


@pytest.mark.parametrize("capacity", [37.0, 100.0, 400.0, 5.0])
def test_the_highest_rate_is_found(capacity: float) -> None:
    asked: list[float | None] = []

    def measured(chosen: Settings) -> Result:
        asked.append(chosen.rate)
        if (chosen.rate or 0) > 3 * capacity:
            raise StepFailed("no call was answered")
        figures = {"calls_per_s": 100.0, "goodput_per_s": min(chosen.rate or 0, capacity), "client_cpu": 0.1}
        calls = round((chosen.rate or 0) * chosen.seconds)
        return Result(chosen, Served("t", "classify"), calls, {}, {}, figures)

    shown: list[float] = []
    chosen = settings("x:1", "sentiment", seconds=10.0, goodput={"e2el": 20.0})
    found, results = highest(chosen, lambda rate, result: shown.append(rate), measured)
    best = found.rate
    assert asked[0] is None
    assert shown == asked[1:]
    assert 0.9 * capacity <= best <= 1.02 * capacity
    assert all(one.good_share >= 0.99 for one in results if (one.settings.rate or 0) <= best)


@pytest.mark.parametrize(("limit", "capacity", "invalid"), [(40.0, 100.0, True), (400.0, 100.0, False)])
def test_a_rate_that_the_client_limited_is_no_evidence(limit: float, capacity: float, invalid: bool) -> None:
    def measured(chosen: Settings) -> Result:
        rate = chosen.rate or 60.0
        figures = {"calls_per_s": rate, "goodput_per_s": min(rate, capacity), "client_cpu": 0.99 * (rate > limit)}
        return Result(chosen, Served("t", "classify"), round(rate * chosen.seconds), {}, {}, figures)

    chosen = settings("x:1", "sentiment", seconds=10.0, goodput={"e2el": 20.0})
    best, results = highest(chosen, lambda rate, result: None, measured)
    assert best.invalid == invalid
    assert 0.9 * min(limit, capacity) <= best.rate <= 1.02 * min(limit, capacity)
    assert not any(one.invalid for one in results if (one.settings.rate or 0) <= best.rate)


def test_without_a_valid_run_no_rate_is_good() -> None:
    def measured(chosen: Settings) -> Result:
        figures = {"calls_per_s": 10.0, "goodput_per_s": chosen.rate, "client_cpu": 0.99}
        return Result(chosen, Served("t", "classify"), round((chosen.rate or 1) * 10), {}, {}, figures)

    best, _ = highest(settings("x:1", "m", seconds=10.0, goodput={"e2el": 20.0}), lambda *_: None, measured)
    assert (best.rate, best.invalid) == (0.0, True)
