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
from tuneserve.quantize.report import Report
from tuneserve.quantize.schemes import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """A recipe that was carried out and measured."""

    report: Report
    directory: Path
    holds: bool  # no more was lost than is allowed

    @property
    def speed(self) -> float:
        """Texts or tokens a second."""
        return self.report.after.throughput


# Makes and measures one.
Carry = Callable[[Recipe], Attempt]
# Returns the numbers of the blocks that an attempt hurt, the worst first; none where that can't be found out.
Worst = Callable[[Attempt], Sequence[int]]


def hold(recipe: Recipe, methods: Iterable[str], carry: Carry, worst: Worst, speed: float = 0) -> list[Attempt]:
    """Tries the methods of one scheme, then the best of them with more and more blocks left as they are.

    Returns all attempts; the last is the first that holds, if any does. Ends early with one that is not faster than
    `speed`: leaving blocks out makes it no faster. Of those before the best, only the report is left.
    """
    tried: list[Attempt] = []

    def ends(one: Recipe) -> bool:
        tried.append(carry(one))
        _discard(tried, tried[-1] if tried[-1].holds else min(tried, key=_drop))
        return tried[-1].holds or tried[-1].speed <= speed

    for method in methods:
        if ends(replace(recipe, method=method)):
            return tried
    best = min(tried, key=_drop)
    for blocks in sensitivity.growing(worst(best)):
        if ends(replace(best.report.recipe, kept=blocks)):
            break
    return tried


def fastest(
    recipes: Iterable[tuple[Recipe, Sequence[str]]], carry: Carry, worst: Worst, before: float
) -> tuple[Attempt | None, list[Attempt]]:
    """Tries several schemes, each with its methods; returns the fastest that holds, and all attempts.

    None where no attempt that holds is faster than `before`.
    """
    best: Attempt | None = None
    tried: list[Attempt] = []
    for recipe, methods in recipes:
        try:
            tried += hold(recipe, methods, carry, worst, best.speed if best else before)
        except StepFailed as error:
            logger.warning("%s: %s", recipe.scheme.name, error)
        good = [attempt for attempt in tried if attempt.holds and attempt.speed > before]
        best = max(good, key=lambda attempt: attempt.speed, default=None)
        _discard(tried, best)
    return best, tried


def verdict(attempt: Attempt, chosen: Attempt | None, before: float) -> str:
    """Returns what became of an attempt, in a few words."""
    if attempt is chosen:
        return "kept"
    if not attempt.holds:
        return "loses too much"
    return "no faster than before" if attempt.speed <= before else "slower than the one kept"


def _discard(tried: Iterable[Attempt], keep: Attempt | None) -> None:
    for attempt in tried:
        if attempt is not keep:
            shutil.rmtree(attempt.directory, ignore_errors=True)


def _drop(attempt: Attempt) -> float:
    # What is no number, from broken weights, is the most that can be lost.
    return math.inf if math.isnan(attempt.report.drop) else attempt.report.drop
