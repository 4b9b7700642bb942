"""An engine's processes: its own and their workers. Known by more than their numbers, which the system gives again.

Knows where vLLM's AsyncLLM keeps those it started, and nothing else of vLLM.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import psutil

_POLL_SECONDS = 0.02


def started_by(engine: Any) -> list[psutil.Process]:
    """Returns an AsyncLLM's processes, also of data parallel engines: first those it started, then their children."""
    resources = engine.engine_core.resources
    own = [process.pid for process in resources.engine_manager.processes]
    if resources.coordinator is not None:
        own.append(resources.coordinator.proc.pid)
    parents = [psutil.Process(pid) for pid in own]
    return parents + [child for parent in parents for child in parent.children(recursive=True)]


def cpu_seconds(processes: Sequence[psutil.Process]) -> dict[int, float]:
    """Returns the CPU time that each has used so far, and each child that it started since; by process id.

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
    return seconds


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
