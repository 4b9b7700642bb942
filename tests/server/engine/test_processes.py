"""An engine's processes are found, killed when stopped, and waited for. Small real processes stand for vLLM's."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace

import psutil
import pytest

from tuneserve.server.engine import processes as engine_processes

PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print("started", flush=True)
time.sleep(300)
"""


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"started\n"
        yield started
        for child in psutil.Process(started.pid).children() if started.poll() is None else ():
            child.kill()
        started.kill()


def engine_of(process, coordinator=None):
    manager = SimpleNamespace(processes=[process])
    return SimpleNamespace(
        engine_core=SimpleNamespace(resources=SimpleNamespace(engine_manager=manager, coordinator=coordinator))
    )


def test_workers_and_the_coordinator_are_found(process):
    coordinator = SimpleNamespace(proc=SimpleNamespace(pid=psutil.Process().pid))
    found = engine_processes.started_by(engine_of(process, coordinator))
    assert [one.pid for one in found[:2]] == [process.pid, psutil.Process().pid]
    assert psutil.Process(process.pid).children()[0] in found


def test_a_stopped_engine_and_its_orphaned_worker_are_killed(process):
    parent, worker = engine_processes.started_by(engine_of(process))
    for one in (parent, worker):
        one.suspend()
    parent.kill()
    process.wait(30)
    assert engine_processes.runs(worker)
    engine_processes.kill([parent, worker])
    engine_processes.wait_for_end([parent, worker], 30)
    assert not engine_processes.runs(worker)


BUSY = r"""
import subprocess, sys
burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True)\n"
sys.stdin.readline()
living = subprocess.Popen([sys.executable, "-c", burn + "time.sleep(300)"], stdout=subprocess.PIPE)
living.stdout.readline()
subprocess.run([sys.executable, "-c", burn], stdout=subprocess.DEVNULL)
print("done", flush=True)
sys.stdin.readline()
living.kill()
"""


def test_cpu_time_counts_children_that_came_later_and_those_that_ended():
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        found = engine_processes.started_by(engine_of(started))
        before = engine_processes.cpu_seconds(found)
        started.stdin.write(b"go\n")
        started.stdin.flush()
        assert started.stdout.readline() == b"done\n"
        after = engine_processes.cpu_seconds(found)
        # Its own, with the child that ended; and the child that lives.
        assert after[started.pid] - before[started.pid] >= 0.2
        [later] = after.keys() - before.keys()
        assert after[later] >= 0.2


def test_a_process_that_others_leave_no_cpu_is_alive():
    """As an engine on a starved machine, which a watchdog must not take for one that hangs."""
    spinning = [sys.executable, "-c", "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile 1: 1"]
    with ExitStack() as stack:
        spinners = [stack.enter_context(subprocess.Popen(spinning)) for _ in range(12)]
        for one in spinners:
            stack.callback(one.kill)
        starved = psutil.Process(spinners[0].pid)
        time.sleep(1)
        before, own, began = engine_processes.cpu_seconds([starved]), starved.cpu_times().user, time.monotonic()
        time.sleep(3)
        after, passed = engine_processes.cpu_seconds([starved]), time.monotonic() - began
        assert starved.cpu_times().user - own < 0.5 * passed
        assert after[starved.pid] - before[starved.pid] > 0.5 * passed


def test_processes_that_are_stopped_or_gone_use_no_cpu_time(process):
    found = engine_processes.started_by(engine_of(process))
    for one in found:
        one.suspend()
    # Whoever has no core just now stops when it gets one.
    for _ in range(500):
        if all(one.status() == psutil.STATUS_STOPPED for one in found):
            break
        time.sleep(0.01)
    before = engine_processes.cpu_seconds(found)
    time.sleep(0.2)
    assert engine_processes.cpu_seconds(found) == before
    engine_processes.kill(found)
    process.wait(30)
    engine_processes.wait_for_end(found, 30)
    assert not engine_processes.cpu_seconds([found[0]])


def test_the_exit_status_is_left_to_who_started_it(process):
    found = engine_processes.started_by(engine_of(process))
    engine_processes.kill(found)
    engine_processes.wait_for_end(found, 30)
    assert process.wait(30) == -9


def test_waiting_has_a_bound(process):
    found = engine_processes.started_by(engine_of(process))
    started = time.monotonic()
    engine_processes.wait_for_end(found, 0.2)
    assert time.monotonic() - started >= 0.2
    assert all(map(engine_processes.runs, found))


class Starting:
    """What a thread does that starts an engine: begins a process with a child, and waits for an answer of it."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.children: list[psutil.Process] = []
        self.start = engine_processes.Start(self._work)

    def _work(self) -> None:
        with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as started:
            started.stdout.readline()
            own = psutil.Process(started.pid)
            self.children = [own, *own.children()]
            self.begun.set()
            if started.wait() == -9 and not self.go_on.is_set():
                raise RuntimeError("the engine's process ended")


async def test_what_a_start_has_begun_is_known_and_ended_alone(until):
    one, other = Starting(), Starting()
    await until(lambda: one.begun.is_set() and other.begun.is_set())
    assert set(one.start.processes()) == set(one.children)
    assert set(other.start.processes()) == set(other.children)
    await one.start.end(30)
    assert one.start.done.exception() is not None
    engine_processes.wait_for_end(one.children, 30)
    assert not any(map(engine_processes.runs, one.children))
    assert all(map(engine_processes.runs, other.children))
    await other.start.end(30)


async def test_a_thread_that_does_not_end_is_waited_for_no_longer_than_asked(until):
    hanging = threading.Event()
    start = engine_processes.Start(lambda: hanging.wait(60) and None)
    await asyncio.wait_for(start.end(0.2), 30)
    assert not start.done.done()
    hanging.set()
    await until(start.done.done)


async def test_a_start_that_fails_after_its_caller_was_cancelled_logs_nothing(until):
    going, told, loop = threading.Event(), [], asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context["message"]))

    def work() -> None:
        going.wait(60)
        raise RuntimeError("ended on purpose")

    start = engine_processes.Start(work)
    waiting = asyncio.create_task(start.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    going.set()
    await until(start.done.done)
    assert str(start.done.exception()) == "ended on purpose"
    await asyncio.sleep(0.1)
    del waiting, start
    gc.collect()
    loop.set_exception_handler(None)  # the loop is that of all tests
    assert told == []
