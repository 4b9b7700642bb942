"""How long a single call takes where nobody else calls: one at a time, seen by the caller."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Latency:
    """Milliseconds that half of the calls, and 95 of 100, took at most."""

    p50_ms: float
    p95_ms: float


def latency(call: Callable[[T], object], items: Sequence[T]) -> Latency:
    """Calls with each item in turn. The first is called once more before: it pays for what the others find ready."""
    call(items[0])
    times = []
    for item in items:
        started = time.perf_counter()
        call(item)
        times.append((time.perf_counter() - started) * 1000)
    half, most = np.percentile(times, (50, 95))
    return Latency(float(half), float(most))
