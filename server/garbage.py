"""Python's garbage collector, kept from going through all objects in the middle of many calls: it takes tenths of a
second, for which all of them wait.
"""

import asyncio
import gc
from collections.abc import Iterator, Sized
from contextlib import contextmanager

# How often it may go through all objects, and with how many calls at most.
_SECONDS, _FEW_CALLS, _NEVER = 10.0, 64, 1 << 30
# Times that it went through younger objects, each after some 7,000 more of them: then memory counts for more than
# tenths of a second. Calls leave nothing to collect (tests/server/promises/test_cycles.py), but gRPC's do.
_MUCH = 300

_thresholds: list[tuple[int, int, int]] = []


async def keep_what_there_is() -> None:
    """What was imported stays: without this the collector goes through all of it again, while calls wait."""
    await asyncio.to_thread(gc.collect)
    gc.freeze()


async def collect(running: Sized) -> None:
    """Collects now and then, while few calls run or there is much to look at, until it is cancelled. Meanwhile the
    collector does not by itself.
    """
    with _no_full_collections():
        while True:
            await asyncio.sleep(_SECONDS)
            if len(running) <= _FEW_CALLS or gc.get_count()[2] >= _MUCH:
                gc.collect()


@contextmanager
def _no_full_collections() -> Iterator[None]:
    """Old objects are left alone until the last of these ends: in tests a process has many servers."""
    young, middle, old = gc.get_threshold()
    _thresholds.append((young, middle, old))
    gc.set_threshold(young, middle, _NEVER)
    try:
        yield
    finally:
        before = _thresholds.pop()
        if not _thresholds:
            gc.set_threshold(*before)
