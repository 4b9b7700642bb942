"""An engine's processes and their workers. Identified by more than their ids, which the system reuses.

Knows where vLLM's AsyncLLM keeps the processes it started, and nothing else of vLLM.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil

from tuneserve.server.engine import fork_server

_POLL_SECONDS = 0.02
# Reading this many bytes counts as a second of CPU time.
_READ_IN_A_SECOND = 10e6


class Start:
    """Blocking work that starts processes, in a thread of its own: the processes are known, and can be ended,
    meanwhile.

    It is a daemon thread, because it may hang where nothing can end it.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.done: Future[None] = Future()
        self.done.set_running_or_notify_cancel()
        self._ended = False
        self._forked: list[int] = []
        # Starts Python's resource tracker now, if it does not run: otherwise it would count as one of the engine's
        # processes.
        fork_server.track()
        self._thread = threading.Thread(target=self._run, args=(work,), name="start an engine", daemon=True)
        self._thread.start()

    def processes(self) -> list[psutil.Process]:
        """Returns the processes that the thread has started so far; empty once it is done."""
        return [] if self.done.done() else self._begun()

    async def wait(self) -> None:
        """Waits until the work is done, and raises what it raised. The work goes on when its caller is cancelled."""
        await asyncio.wrap_future(self.done)

    async def end(self, seconds: float) -> None:
        """Ends the processes that the work has started or still starts. Waits at most `seconds` for the thread."""
        self._ended, deadline = True, time.monotonic() + seconds
        while not self.done.done() and time.monotonic() < deadline:
            kill(self.processes())
            await asyncio.sleep(_POLL_SECONDS)

    def _begun(self) -> list[psutil.Process]:
        return [*_children(self._thread), *_with_children(self._forked)]

    def _run(self, work: Callable[[], None]) -> None:
        fork_server.note(self._forked)
        try:
            work()
        except BaseException as error:
            kill(self._begun())
            self.done.set_exception(error)
            return
        if self._ended:
            kill(self._begun())
        self.done.set_result(None)


def _children(thread: threading.Thread) -> list[psutil.Process]:
    """Returns the processes that a thread has started, and their children; empty if the kernel does not tell."""
    try:
        pids = Path(f"/proc/self/task/{thread.native_id}/children").read_text(encoding="ascii").split()
    except OSError:
        return []
    return _with_children(map(int, pids))


def _with_children(pids: Iterable[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(pid)
            found += [started, *started.children(recursive=True)]
    return found


def started_by(engine: Any) -> list[psutil.Process]:
    """Returns an AsyncLLM's processes, including data parallel engines: first those it started, then their children."""
    resources = engine.engine_core.resources
    own = [process.pid for process in resources.engine_manager.processes]
    if resources.coordinator is not None:
        own.append(resources.coordinator.proc.pid)
    parents = [psutil.Process(pid) for pid in own]
    return parents + [child for parent in parents for child in parent.children(recursive=True)]


def cpu_seconds(processes: Sequence[psutil.Process]) -> dict[int, float]:
    """Returns, by process id, the CPU time of each process, and of each child that it started since. Bytes read count
    as time, too: a process may be loading its model from a slow disk. So does the time that its main thread waited for
    a CPU: other programs may leave it next to nothing.

    A process's time includes that of its children that have ended.
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
            seconds[process.pid] += _bytes_read(process) / _READ_IN_A_SECOND + _waited(process.pid)
    return seconds


def _waited(process: int) -> float:
    """Returns the seconds that a process's main thread could have run and had no CPU; 0 if the system does not tell."""
    try:
        _, waited, _ = Path(f"/proc/{process}/schedstat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return 0.0
    return int(waited) / 1e9


def _bytes_read(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.AccessDenied, AttributeError):
        counters = process.io_counters()
        return int(max(counters.read_bytes, counters.read_chars))
    return 0


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kills processes at once, even stopped ones or those whose parent is gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def wait_for_end(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Blocks until the processes and their memory are gone, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while any(map(runs, processes)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def runs(process: psutil.Process) -> bool:
    """Whether a process has not ended yet. Leaves its exit status to its parent."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
