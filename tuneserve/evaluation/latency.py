"""Latency of single calls, one at a time on an idle server, as the caller sees it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# On a slow or busy machine a call may take seconds; a quarter of a minute of calls is enough.
SECONDS, FEWEST = 15, 5


@dataclass(frozen=True)
class Latency:
    """The median (p50) and 95th percentile (p95) of the calls' times, in milliseconds."""

    p50_ms: float
    p95_ms: float


def latency(call: Callable[[T], object], items: Sequence[T], clock: Callable[[], float] = time.perf_counter) -> Latency:
    """Calls with each item in turn, for SECONDS and at least FEWEST items.

    Before that, the first item is called once as a warm-up.
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
