"""How long a single call takes where nobody else calls: one at a time, seen by the caller."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# On a slow or busy machine a call may take seconds; a quarter of a minute of them says enough.
SECONDS, FEWEST = 15, 5


@dataclass(frozen=True)
class Latency:
    """Milliseconds that half of the calls, and 95 of 100, took at most."""

    p50_ms: float
    p95_ms: float


def latency(call: Callable[[T], object], items: Sequence[T], clock: Callable[[], float] = time.perf_counter) -> Latency:
    """Calls with each item in turn, for SECONDS, and FEWEST items at least.

    The first is called once more before: it pays for what the others find ready.
    """
    call(items[0])
    times = list[float]()
    for item in items:
        if len(times) >= FEWEST and sum(times) >= SECONDS * 1000:
            break
        started = clock()
        call(item)
        times.append((clock() - started) * 1000)
    half, most = np.percentile(times, (50, 95))
    return Latency(float(half), float(most))
