"""Ratios with their spread, and what was promised of them. Knows numbers only."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of a few measurements."""

    median: float
    low: float
    high: float

    def to_json(self) -> list[float]:
        """Median, lowest, highest."""
        return [round(value, 4) for value in (self.median, self.low, self.high)]


@dataclass(frozen=True)
class Claim:
    """A ratio of two scenarios, and the bound that was promised of its median; none where it is only shown."""

    name: str
    of: str
    to: str
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Ratio:
    """What came of a claim."""

    claim: Claim
    spread: Spread

    @property
    def kept(self) -> bool | None:
        """Whether the promise holds; None where there is none."""
        if self.claim.at_least is not None:
            return self.spread.median >= self.claim.at_least
        if self.claim.at_most is not None:
            return self.spread.median <= self.claim.at_most
        return None

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
            "ratio": self.spread.to_json(),
            "promise": self.promise or None,
            "kept": self.kept,
        }


def spread(values: Sequence[float]) -> Spread:
    """Returns the spread of at least one value."""
    return Spread(median(values), min(values), max(values))


def ratios(claims: Sequence[Claim], measured: dict[str, list[float]]) -> list[Ratio]:
    """Pairs what two scenarios gave in the same round; claims on scenarios that did not run are left out."""
    return [
        Ratio(claim, spread([a / b for a, b in zip(measured[claim.of], measured[claim.to], strict=True)]))
        for claim in claims
        if measured.get(claim.of) and measured.get(claim.to)
    ]
