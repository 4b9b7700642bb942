"""The order of attempts: for one scheme until one meets the gate, for several schemes to find the fastest.

Knows nothing of how an attempt is made and measured.
"""

import logging
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneserve.errors import StepFailed
from tuneserve.quantize import sensitivity
from tuneserve.quantize.race import Ratio
from tuneserve.quantize.report import Report
from tuneserve.quantize.schemes import Recipe

logger = logging.getLogger(__name__)


# Ratios below this are noise if the speeds were measured one after the other.
MARGIN = 1.5


@dataclass(frozen=True)
class Attempt:
    """A recipe that was carried out, and measured on the choosing rows."""

    report: Report
    directory: Path
    holds: bool  # the gate is expected to pass on the held-out rows

    @property
    def is_faster(self) -> bool:
        """Whether it won a race against the original."""
        return self.report.ratio is not None and self.report.ratio.is_faster

    @property
    def speed(self) -> float:
        """Texts or tokens a second."""
        return self.report.after.throughput


# Makes and measures an attempt.
Carry = Callable[[Recipe], Attempt]
# Returns the numbers of the blocks that lose most in an attempt, the worst first; empty if that can't be found out.
Worst = Callable[[Attempt], Sequence[int]]
# Measures how much faster an attempt is than the original.
Race = Callable[[Attempt], Ratio]


def hold(
    recipe: Recipe,
    methods: Iterable[str],
    carry: Carry,
    worst: Worst,
    speed: float = 0,
    failed: Iterable[Attempt] = (),
) -> list[Attempt]:
    """Tries the methods of one scheme, then the best of them with more and more blocks left unquantized.

    Returns all attempts, beginning with those that `failed` before; the last is the first that holds, if any does. Ends
    early after an attempt that is clearly slower than `speed`: leaving blocks out would make it no faster. Only the
    directory of the `best` attempt is kept.
    """
    tried = list(failed)

    def ends(one: Recipe) -> bool:
        tried.append(carry(one))
        _discard(tried, [best(tried)])
        return tried[-1].holds or not _may_be_faster(tried[-1], speed)

    for method in methods:
        if ends(replace(recipe, method=method)):
            return tried
    first = best(tried)
    for blocks in sensitivity.growing(worst(first)):
        if ends(replace(first.report.recipe, kept=blocks)):
            break
    return tried


def best(tried: Sequence[Attempt]) -> Attempt:
    """Returns the attempt that holds, or else the one that loses least."""
    return tried[-1] if tried[-1].holds else min(tried, key=_drop)


def fastest(
    recipes: Iterable[tuple[Recipe, Sequence[str]]], carry: Carry, worst: Worst, race: Race, before: float
) -> tuple[list[Attempt], list[Attempt]]:
    """Tries several schemes, each with its methods. Returns the attempts that hold and are faster than the original,
    the fastest first, and all attempts. `before`: the original's texts or tokens per second.

    One measurement of each shows which attempts may be faster; a race in interleaved rounds shows which are.
    """
    good: list[Attempt] = []
    tried: list[Attempt] = []
    for recipe, methods in recipes:
        speed = max([before, *(attempt.speed for attempt in good)])
        try:
            found = hold(recipe, methods, carry, worst, speed)
        except StepFailed as error:
            logger.warning("%s: %s", recipe.scheme.name, error)
            continue
        if found[-1].holds and _may_be_faster(found[-1], speed):
            found[-1] = replace(found[-1], report=replace(found[-1].report, ratio=race(found[-1])))
            good.append(found[-1])
        tried += found
        good = [attempt for attempt in good if attempt.is_faster]
        _discard(tried, good)
    return sorted(good, key=_gain, reverse=True), tried


def verdict(attempt: Attempt, chosen: Attempt | None) -> str:
    """Returns the outcome of an attempt, in a few words."""
    if attempt is chosen:
        return "chosen"
    if not attempt.holds:
        return "may lose too much"
    return "slower than the one chosen" if attempt.is_faster else "no faster than before"


def _may_be_faster(attempt: Attempt, speed: float) -> bool:
    return MARGIN * attempt.speed > speed


def _discard(tried: Iterable[Attempt], keep: Sequence[Attempt]) -> None:
    kept = [attempt.directory for attempt in keep]
    for attempt in tried:
        if attempt.directory not in kept:
            shutil.rmtree(attempt.directory, ignore_errors=True)


def _gain(attempt: Attempt) -> float:
    return attempt.report.ratio.value if attempt.report.ratio else 0


def _drop(attempt: Attempt) -> float:
    # NaN, from broken weights, counts as the largest drop.
    return math.inf if math.isnan(attempt.report.drop) else attempt.report.drop
