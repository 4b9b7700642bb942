"""Measures how long an event loop is held: by what runs on it, by what blocks it, and by threads that keep Python's
interpreter lock.

It is the time of a turn of the loop without the time in which its thread, or the one that has the lock, could run and
had no core: other work on the machine does not count. That time is known on Linux; elsewhere turns are measured in the
loop's own CPU time, and what blocks it, or keeps the lock, is not seen.
"""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

# Seconds. Shorter turns are no news, and need no look at the threads.
_SHORT = 0.02
# Seconds after which the threads' times are read again: what is between counts as of the turn that is measured.
_FRESH = 0.01


class Probe:
    """`longest` is the longest turn so far, in seconds, while `watch` runs.

    Callers must be in other threads, and their messages made before: what is measured is the server's.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self.longest_by_clock = 0.0  # with the time in which there was no core

    async def watch(self) -> None:
        clock = time.monotonic if _starved() else time.thread_time
        before, read = _starved(), clock()
        while True:
            began = clock()
            if began - read > _FRESH:
                before, read = _starved(), clock()
                began = read
            # Whatever is ready has its turn meanwhile, and nothing is waited for.
            await asyncio.sleep(0)
            took = clock() - began
            self.longest_by_clock = max(self.longest_by_clock, took)
            if took > _SHORT:
                after = _starved()
                took -= max((after[id_] - before.get(id_, 0.0) for id_ in after), default=0.0)
            self.longest = max(self.longest, took)


@asynccontextmanager
async def probing() -> AsyncIterator[Probe]:
    """Measures the running loop meanwhile."""
    probe = Probe()
    # What a process of tests has beside a server's is not gone through for garbage meanwhile.
    gc.freeze()
    watching = asyncio.create_task(probe.watch())
    try:
        yield probe
    finally:
        watching.cancel()
        gc.unfreeze()


def _starved() -> Mapping[int, float]:
    """Returns for how many seconds each thread that runs Python could have run, but had no core; nothing if unknown."""
    found = {}
    for thread in threading.enumerate():
        try:
            words = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_bytes().split()
        except OSError:
            continue  # it has ended, or this is not Linux
        found[thread.native_id or 0] = int(words[1]) / 1e9
    return found
