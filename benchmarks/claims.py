"""Ratios with their confidence interval, and the promises about them. Knows numbers only.

The method, for ratios and rates alike: the geometric mean over the rounds, with the 95 % interval of Student's t on the
logarithms. A ratio compares two scenarios of the same round, so anything that slows a whole round affects both. The
method assumes that rounds are independent and their logarithms roughly normal; it does not account for what all rounds
have in common, such as the machine.

A promise is kept if the whole interval is on its side of the bound, not kept if the whole interval is on the other
side, and not shown if the bound lies inside, or if fewer than `MIN_ROUNDS` rounds were measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

METHOD = "Geometric mean over the rounds and, in brackets, its 95 % interval by Student's t on the logarithms"
MIN_ROUNDS = 15

Verdict = Literal["kept", "not kept", "not shown"]


@dataclass(frozen=True)
class Interval:
    """The geometric mean over the rounds, and the ends of its interval; a single round has no interval."""

    mean: float
    low: float | None
    high: float | None
    rounds: int

    def text(self, digits: int) -> str:
        """For people."""
        if self.low is None or self.high is None:
            return f"{self.mean:,.{digits}f} (one round)"
        return f"{self.mean:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"

    def ends(self) -> list[float] | None:
        """For JSON."""
        return None if self.low is None or self.high is None else [round(self.low, 4), round(self.high, 4)]


@dataclass(frozen=True)
class Claim:
    """A ratio of two scenarios, and the promised bound; a ratio that is only shown has no bound."""

    name: str
    of: str
    to: str
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Ratio:
    """The measured result of a claim."""

    claim: Claim
    interval: Interval

    @property
    def verdict(self) -> Verdict | None:
        """Whether the promise is kept; None if there is no promise."""
        least, most = self.claim.at_least, self.claim.at_most
        if least is None and most is None:
            return None
        low, high = self.interval.low, self.interval.high
        if low is None or high is None or self.interval.rounds < MIN_ROUNDS:
            return "not shown"
        if least is not None:
            return "kept" if low >= least else "not kept" if high < least else "not shown"
        assert most is not None
        return "kept" if high <= most else "not kept" if low > most else "not shown"

    @property
    def promise(self) -> str:
        """The bound, for people."""
        if self.claim.at_least is not None:
            return f"≥ {self.claim.at_least:g}"
        return f"≤ {self.claim.at_most:g}" if self.claim.at_most is not None else ""

    def to_json(self) -> dict[str, object]:
        """One flat object."""
        return {
            "name": self.claim.name,
            "ratio": round(self.interval.mean, 4),
            "interval": self.interval.ends(),
            "rounds": self.interval.rounds,
            "promise": self.promise or None,
            "verdict": self.verdict,
        }


def interval(values: Sequence[float]) -> Interval:
    """Returns mean and interval of at least one value, all above zero."""
    from tuneserve.evaluation.significance import geometric

    mean, low, high = geometric(values)
    return Interval(mean, low, high, len(values)) if len(values) > 1 else Interval(values[0], None, None, 1)


def ratios(claims: Sequence[Claim], measured: dict[str, list[float]]) -> list[Ratio]:
    """Pairs the results of two scenarios in the same round; claims on scenarios that did not run are left out."""
    return [
        Ratio(claim, interval([a / b for a, b in zip(measured[claim.of], measured[claim.to], strict=True)]))
        for claim in claims
        if measured.get(claim.of) and measured.get(claim.to)
    ]
