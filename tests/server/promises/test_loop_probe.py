"""The probe that the promises about the event loop are tested with sees all that holds a loop, and nothing else."""

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from . import loop_probe
from .loop_probe import Probe, probing

LONG = 0.2
SHORT = 0.1
TRIES = 5

needs_times = pytest.mark.skipif(not loop_probe._starved(), reason="the kernel does not tell how threads are scheduled")


def match(count: int) -> None:
    """One call of C that keeps the interpreter lock, and takes twice as long for each more."""
    assert not re.match("(a+)+$", "a" * count + "b")


@pytest.fixture(scope="module")
def count() -> int:
    """How many make `match` take long enough."""
    for number in range(18, 40):
        before = time.thread_time()
        match(number)
        if time.thread_time() - before > LONG:
            return number
    raise AssertionError("no match takes long")


async def blocked(count: int) -> None:
    time.sleep(LONG)  # noqa: ASYNC251


async def locked(count: int) -> None:
    lock = threading.Lock()
    with lock:
        threading.Timer(LONG, lock.release).start()
        lock.acquire()


async def computed(count: int) -> None:
    match(count)


async def computed_in_python(count: int) -> None:
    until = time.thread_time() + LONG
    while time.thread_time() < until:
        pass


async def computed_in_a_thread(count: int) -> None:
    await asyncio.to_thread(match, count)


async def measured(work: Callable[[int], Awaitable[None]], count: int) -> Probe:
    async with probing() as probe:
        await asyncio.sleep(0.02)
        await work(count)
        await asyncio.sleep(0.02)
    return probe


async def longest(work: Callable[[int], Awaitable[None]], count: int) -> float:
    """Of several tries: on a busy machine, a core may be missing just then."""
    return max([(await measured(work, count)).longest for _ in range(TRIES)])


@needs_times
@pytest.mark.parametrize("work", [blocked, locked, computed_in_a_thread])
async def test_what_keeps_the_loop_from_running_is_seen(work, count):
    assert await longest(work, count) > SHORT


@pytest.mark.parametrize("work", [computed, computed_in_python])
@pytest.mark.parametrize("times", [True, False], ids=["", "without the times of threads"])
async def test_what_runs_on_the_loop_is_seen(work, count, times, monkeypatch):
    if not times:
        monkeypatch.setattr(loop_probe, "_starved", dict)
    assert await longest(work, count) > SHORT


async def test_other_threads_of_python_do_not_hold_it(count):
    """They hand the lock over every few milliseconds."""

    async def beside(count: int) -> None:
        await asyncio.gather(*(asyncio.to_thread(asyncio.run, computed_in_python(count)) for _ in range(2)))

    assert min([(await measured(beside, count)).longest for _ in range(TRIES)]) <= SHORT


@needs_times
def test_other_processes_do_not_hold_it():
    """One for each core, beside which the loop gets a few milliseconds of each second."""

    def measure() -> Probe:
        # Of this thread only.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        with asyncio.Runner() as runner:

            async def idle() -> Probe:
                async with probing() as probe:
                    await asyncio.sleep(1)
                return probe

            return runner.run(idle())

    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        probes = [in_a_new_thread(measure) for _ in range(TRIES)]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert max(probe.longest_by_clock for probe in probes) > LONG
    assert min(probe.longest for probe in probes if probe.longest_by_clock > LONG) <= SHORT


def in_a_new_thread(measure: Callable[[], Probe]) -> Probe:
    """A thread that is not used again, since it has the lowest priority."""
    found: list[Probe] = []
    thread = threading.Thread(target=lambda: found.append(measure()))
    thread.start()
    thread.join()
    return found[0]
