"""How much faster one checkpoint is served than another: both servers run at once and are measured in turns, so that
other load on the machine affects both alike.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tuneserve import checkpoint
from tuneserve.checkpoint.rows import Row
from tuneserve.evaluation.measurement import MODEL, speed_at
from tuneserve.evaluation.significance import geometric
from tuneserve.serving import launched

logger = logging.getLogger(__name__)

ROUNDS = 7


@dataclass(frozen=True)
class Ratio:
    """A ratio of two speeds, with the ends of its 95 % interval over the rounds; NaN if there was only one round."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def is_faster(self) -> bool:
        """Whether the interval, or the value if there is no interval, is above 1."""
        return (self.value if math.isnan(self.low) else self.low) > 1

    def metrics(self) -> dict[str, float]:
        """Returns the values for the lineage."""
        ends = {} if math.isnan(self.low) else {"speed_ratio_low": self.low, "speed_ratio_high": self.high}
        return {"speed_ratio": self.value, **ends}

    def __str__(self) -> str:
        ends = "" if math.isnan(self.low) else f" ({self.low:.2f} to {self.high:.2f})"
        return f"x {self.value:.2f}{ends}"


def of_rounds(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Returns the mean ratio of the second's speeds to the first's, round by round."""
    return Ratio(*geometric([after / before for before, after in zip(first, second, strict=True)]))


def in_turns(first: Path, second: Path, rows: Sequence[Row]) -> Ratio:
    """Serves both checkpoints and measures their speeds in ROUNDS rounds, after a warm-up round."""
    manifest = checkpoint.load(first)
    with (
        launched("--model", f"{MODEL}={first.resolve()}") as one,
        launched("--model", f"{MODEL}={second.resolve()}") as other,
    ):
        runners = [(one.addresses.grpc, first), (other.addresses.grpc, second)]
        speeds: list[list[float]] = [[], []]
        for number in range(1 + ROUNDS):
            # They take turns in being first: the second in a round may find the machine warm.
            for place in (0, 1) if number % 2 else (1, 0):
                address, directory = runners[place]
                speed = speed_at(address, manifest, rows, directory)
                if number:
                    speeds[place].append(speed)
    found = of_rounds(*speeds)
    logger.info("its speed is %s times the original's, in %d interleaved rounds", found, ROUNDS)
    return found


def fits(memory_bytes: int | None) -> bool:
    """Whether the machine has enough memory for two servers of this size at once."""
    return memory_bytes is not None and 2.2 * memory_bytes < psutil.virtual_memory().available
