"""When calls are due that arrive independently."""

import asyncio
import random
import time
from collections.abc import AsyncIterator


async def arrivals(rate: float, begin: float, end: float, seed: int) -> AsyncIterator[float]:
    """Yields when each call is due, by time.perf_counter: a Poisson process with `rate` a second.

    It yields at that time, or later if this program is late: callers measure from the time that it was due.
    """
    times, due = random.Random(seed), begin
    while (due := due + times.expovariate(rate)) < end:
        # Sleeps even when late, because otherwise no other task would run.
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield due
