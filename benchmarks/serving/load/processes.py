"""A run by one or several client processes, so that one core of the client does not limit the load.

Each has its share of the connections, and makes every Nth call: all of them know when each call of the run is due, and
its running number. So the calls are the same for any number of processes. There is at most one for each connection.
"""

import asyncio
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from threading import Barrier, BrokenBarrierError

from tuneserve.benchmarks.serving.load.bench import measure, part
from tuneserve.benchmarks.serving.load.result import Part, Result, joined
from tuneserve.benchmarks.serving.load.settings import Settings, Share

# From the first process that is ready to the last.
_START_SECONDS = 120.0
_ready: Barrier  # of this process, if it is one of several


def run(settings: Settings) -> Result:
    """Measures; takes warm-up, seconds and at most 10 s to connect.

    Raises CallFailed if the server can't be reached, refuses the key or does not know the model, UserError for a batch
    that is too large for the model, and StepFailed if no call succeeded.
    """
    number = min(settings.processes, settings.connections)
    if number == 1:
        return asyncio.run(measure(settings))
    # A forked process could not use gRPC.
    spawning = multiprocessing.get_context("spawn")
    ready = spawning.Barrier(number)
    with ProcessPoolExecutor(number, spawning, _initialize, (ready,)) as pool:
        running = [pool.submit(_part, one, share) for one, share in _shares(settings, number)]
        failed = [error for one in running if (error := one.exception())]
    # Those that waited for a process that failed say nothing of the cause.
    for error in sorted(failed, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error
    return joined(settings, [one.result() for one in running])


def _shares(settings: Settings, of: int) -> Iterator[tuple[Settings, Share]]:
    first = Share().number
    for index in range(of):
        connections = len(range(index, settings.connections, of))
        yield replace(settings, connections=connections), Share(index, of, first)


def _initialize(ready: Barrier) -> None:
    global _ready
    _ready = ready


def _part(settings: Settings, share: Share) -> Part:
    try:
        return asyncio.run(part(settings, share, lambda: asyncio.to_thread(_ready.wait, _START_SECONDS)))
    except BaseException:
        _ready.abort()
        raise
