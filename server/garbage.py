"""Controls Python's garbage collector, so that full collections do not run while there are many calls: one takes tenths
of a second, during which all calls wait. And gives memory back that libraries have freed.
"""

import asyncio
import contextlib
import ctypes
import gc
from collections.abc import Iterator, Sized
from contextlib import contextmanager

from tuneserve.server import concurrency

# How often a full collection may run, and with how many calls at most.
_SECONDS, _FEW_CALLS, _NEVER = 10.0, 64, 1 << 30
# After this many collections of younger generations, each after some 7,000 more objects, a full collection runs in any
# case: memory then matters more than the pause. Our calls leave no cycles (tests/server/promises/test_cycles.py), but
# gRPC's do.
_MUCH = 300

_thresholds: list[tuple[int, int, int]] = []


async def keep_what_there_is() -> None:
    """Freezes all present objects: without this, each full collection would traverse all imported modules again."""
    await concurrency.apart(gc.collect)
    gc.freeze()


def give_back() -> None:
    """Gives back to the system what was freed: glibc keeps most of it. Other allocators do so by themselves."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


async def collect(running: Sized) -> None:
    """Runs full collections at intervals, if few calls run or much has accumulated, until it is cancelled. Automatic
    full collections are off meanwhile.
    """
    with _no_full_collections():
        while True:
            await asyncio.sleep(_SECONDS)
            if len(running) <= _FEW_CALLS or gc.get_count()[2] >= _MUCH:
                gc.collect()


@contextmanager
def _no_full_collections() -> Iterator[None]:
    """Turns automatic full collections off until the last of these ends: in tests one process has many servers."""
    young, middle, old = gc.get_threshold()
    _thresholds.append((young, middle, old))
    gc.set_threshold(young, middle, _NEVER)
    try:
        yield
    finally:
        before = _thresholds.pop()
        if not _thresholds:
            gc.set_threshold(*before)
