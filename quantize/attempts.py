"""The order in which one scheme is tried until the quality holds, and several to find the fastest.

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


# Speeds that were measured one after the other say nothing below this ratio.
MARGIN = 1.5


@dataclass(frozen=True)
class Attempt:
    """A recipe that was carried out, and measured on the rows to choose on."""

    report: Report
    directory: Path
    holds: bool  # no more should be lost than is allowed

    @property
    def is_faster(self) -> bool:
        """Whether a race was won."""
        return self.report.ratio is not None and self.report.ratio.is_faster

    @property
    def speed(self) -> float:
        """Texts or tokens a second."""
        return self.report.after.throughput


# Makes and measures one.
Carry = Callable[[Recipe], Attempt]
# Returns the numbers of the blocks that an attempt hurt, the worst first; none where that can't be found out.
Worst = Callable[[Attempt], Sequence[int]]
# Measures how much faster one is than what was there before.
Race = Callable[[Attempt], Ratio]


def hold(
    recipe: Recipe,
    methods: Iterable[str],
    carry: Carry,
    worst: Worst,
    speed: float = 0,
    failed: Iterable[Attempt] = (),
) -> list[Attempt]:
    """Tries the methods of one scheme, then the best of them with more and more blocks left as they are.

    Returns all attempts, those that `failed` before first; the last is the first that holds, if any does. Ends early
    with one that is clearly slower than `speed`: leaving blocks out makes it no faster. Only the directory of `best` is
    left.
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
    """Tries several schemes, each with its methods. Returns those that hold and are faster than before, the fastest
    first, and all attempts. `before`: texts or tokens a second.

    Which may be faster is seen from one measurement of each, and which is, from a race in turns.
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
    """Returns what became of an attempt, in a few words."""
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
    # What is no number, from broken weights, is the most that can be lost.
    return math.inf if math.isnan(attempt.report.drop) else attempt.report.drop
