"""The highest rate of calls at which nearly all of them are good: in time, and without an error."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from tuneserve.benchmarks.serving.load.processes import run
from tuneserve.benchmarks.serving.load.result import Result
from tuneserve.benchmarks.serving.load.settings import Settings
from tuneserve.errors import StepFailed

# The share of good calls that a rate needs.
GOOD = 0.99
# How much higher or lower the next rate is, until one was good and one was not; and how many are tried for that.
_MORE, _LESS, _TRIES = 1.5, 0.5, 6
# Rates between those two; each halves what is between.
_STEPS = 4


@dataclass(frozen=True)
class Highest:
    """The highest rate that was good, 0 if none was. `invalid`: the client was the limit of the next higher one."""

    rate: float
    invalid: bool


def highest(
    settings: Settings, show: Callable[[float, Result | None], object], measure: Callable[[Settings], Result] = run
) -> tuple[Highest, list[Result]]:
    """Returns the highest rate that was good, and the results of all rates, in the order of measuring.

    It begins with what the connections reach in a closed loop. An invalid run shows nothing of the server, so higher
    rates are not tried. `show` is called with each rate and its result; None if no call was answered. Raises what
    `processes.run` raises, except for rates at which nothing is answered.
    """
    found, invalid = list[Result](), set[float]()

    def good(rate: float) -> bool:
        try:
            result = measure(replace(settings, rate=rate))
        except StepFailed:
            show(rate, None)
            return False
        found.append(result)
        show(rate, result)
        if result.invalid:
            invalid.add(rate)
        return result.good_share >= GOOD and not result.invalid

    rate = measure(replace(settings, rate=None, goodput={})).figures["calls_per_s"] or 1.0
    low, high = 0.0, math.inf
    for _ in range(_TRIES):
        if good(rate):
            low, rate = rate, rate * _MORE
        else:
            high, rate = rate, rate * _LESS
        if low and high < math.inf:
            break
    for _ in range(_STEPS if low and high < math.inf else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return Highest(low, high in invalid), found
