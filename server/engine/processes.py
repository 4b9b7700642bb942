"""An engine's processes: its own and their workers. Known by more than their numbers, which the system gives again.

Knows where vLLM's AsyncLLM keeps those it started, and nothing else of vLLM.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil

_POLL_SECONDS = 0.02
# As much as a second of computing.
_READ_IN_A_SECOND = 10e6


class Start:
    """Work that blocks while it starts processes, in a thread of its own: they are known, and can be ended, meanwhile.

    The thread is one that nobody waits for at the program's end: it may hang where nothing can end it.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.done: Future[None] = Future()
        self._ended = False
        # Python's helper that tracks shared memory is none of an engine's processes: starts now, where it does not run.
        resource_tracker.ensure_running()
        self._thread = threading.Thread(target=self._run, args=(work,), name="start an engine", daemon=True)
        self._thread.start()

    def processes(self) -> list[psutil.Process]:
        """What the thread has started so far, while it is at work."""
        return [] if self.done.done() else _children(self._thread)

    async def end(self, seconds: float) -> None:
        """Ends it, and the processes that it has started or still starts. Waits no longer than this for the thread."""
        self._ended, deadline = True, time.monotonic() + seconds
        while not self.done.done() and time.monotonic() < deadline:
            kill(self.processes())
            await asyncio.sleep(_POLL_SECONDS)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            kill(_children(self._thread))
            self.done.set_exception(error)
            return
        if self._ended:
            kill(_children(self._thread))
        self.done.set_result(None)


def _children(thread: threading.Thread) -> list[psutil.Process]:
    """The processes that a thread has started, and theirs; none where the kernel does not tell."""
    found = []
    with contextlib.suppress(OSError):
        pids = Path(f"/proc/self/task/{thread.native_id}/children").read_text(encoding="ascii").split()
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                started = psutil.Process(int(pid))
                found += [started, *started.children(recursive=True)]
    return found


def started_by(engine: Any) -> list[psutil.Process]:
    """Returns an AsyncLLM's processes, also of data parallel engines: first those it started, then their children."""
    resources = engine.engine_core.resources
    own = [process.pid for process in resources.engine_manager.processes]
    if resources.coordinator is not None:
        own.append(resources.coordinator.proc.pid)
    parents = [psutil.Process(pid) for pid in own]
    return parents + [child for parent in parents for child in parent.children(recursive=True)]


def cpu_seconds(processes: Sequence[psutil.Process]) -> dict[int, float]:
    """Returns the CPU time that each has used so far, and each child that it started since; by process id. What it
    has read counts, too: it may load its model from a slow disk.

    A process's time holds that of its children that have ended.
    """
    found = set(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update(process.children(recursive=True))
    seconds = {}
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            seconds[process.pid] = used.user + used.system + used.children_user + used.children_system
            seconds[process.pid] += _bytes_read(process) / _READ_IN_A_SECOND
    return seconds


def _bytes_read(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.AccessDenied, AttributeError):
        counters = process.io_counters()
        return int(max(counters.read_bytes, counters.read_chars))
    return 0


def kill(processes: Sequence[psutil.Process]) -> None:
    """Ends them at once, also ones that are stopped or whose parent is gone already."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def wait_for_end(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Blocks until they are gone, with what they held."""
    deadline = time.monotonic() + seconds
    while any(map(runs, processes)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def runs(process: psutil.Process) -> bool:
    """Whether a process has not ended yet. Leaves its exit status to whoever started it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
