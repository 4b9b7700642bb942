"""When calls are due that arrive independently."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator


def gamma(rate: float, seconds: float, seed: int, burstiness: float = 1.0) -> Iterator[float]:
    """Yields the seconds at which calls are due, up to `seconds`, with `rate` a second.

    The gaps between them have a gamma distribution of shape `burstiness`, as in `vllm bench serve`: 1 is a Poisson
    process, less comes in bursts, more is more even.
    """
    times = random.Random(seed)
    gaps = iter(lambda: times.gammavariate(burstiness, 1 / (rate * burstiness)), None)
    return itertools.takewhile(lambda due: due < seconds, itertools.accumulate(gaps))


async def arrivals(times: Iterable[float], begin: float) -> AsyncIterator[float]:
    """Yields when each call is due, by time.perf_counter; `times` are seconds from `begin`.

    It yields at that time, or later if this program is late: callers measure from the time that it was due.
    """
    for due in times:
        # Sleeps even when late, because otherwise no other task would run.
        await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
        yield begin + due
