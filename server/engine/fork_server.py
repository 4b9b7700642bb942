"""The fork server: a process that has imported what an engine imports, and forks itself for each engine.

Importing takes seconds, and most of the memory. A server that starts with models imports first, and makes the fork
server a copy of itself: both, and all engines, have in memory once what was imported, and an engine starts, or starts
again, without importing. Only a process with one thread can be copied safely, so this comes before gRPC. After that,
the fork server is a new program that imports by itself. The rest is Python's: it ends after the server and its engines,
and is started again if it died.

For CPUs, on Linux. Elsewhere, where this was not tried, vLLM spawns its processes.
"""

import contextlib
import importlib
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import ForkServerContext, ForkServerProcess
from unittest import mock

import setproctitle

from tuneserve.machine import lifetime
from tuneserve.machine.runtime import has_nvidia_gpu

_PRELOADED = "tuneserve.server.engine.preloaded"
_STDERR = 2
_NO_WARNING = "ignore::UserWarning:multiprocessing.resource_tracker"
_spawn = util.spawnv_passfds
_here = threading.local()


def is_used() -> bool:
    """Whether engines are forked on this machine."""
    return sys.platform == "linux" and not has_nvidia_gpu()


def fork() -> None:
    """Imports what engines import, and starts the fork server as a copy of this process."""
    if not is_used():
        return
    importlib.import_module(_PRELOADED)
    track()
    with mock.patch.object(util, "spawnv_passfds", _copy):
        start()


def _copy(_: str, command: Sequence[str], passed: Sequence[int]) -> int:
    """Runs a `python -c` in a copy of this process, with those open files alone. Returns its process id."""
    if pid := os.fork():
        return pid
    try:
        vars(util).update(spawnv_passfds=_spawn)  # for what an engine spawns
        setproctitle.setproctitle("tuneserve: forkserver")
        # As in a new program: an engine logs what vLLM's own configuration says.
        logging.getLogger().setLevel(logging.WARNING)
        for file in map(int, os.listdir("/proc/self/fd")):
            if file > _STDERR and file not in passed:
                with contextlib.suppress(OSError):
                    os.close(file)
        exec(command[-1], {})
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def start() -> None:
    """Starts the fork server if it does not run. Does not wait until it has imported."""
    if is_used():
        track()
        multiprocessing.set_forkserver_preload([_PRELOADED])
        with mock.patch.object(util, "spawnv_passfds", partial(_apart, util.spawnv_passfds)):
            forkserver.ensure_running()


def _apart(spawn: Callable[..., int], path: str, command: Sequence[str], passed: Sequence[int]) -> int:
    """Runs a `python -c` in a process group of its own, as its children are. A signal to the server's group, as from a
    terminal, systemd or `timeout`, is for the server alone: its running calls still need the engines.
    """
    *flags, code = command
    return spawn(path, [*flags, f"import os; os.setpgid(0, 0); {code}"], passed)


def track() -> None:
    """Starts Python's resource tracker if it does not run. It removes what killed engines leave, such as semaphores.
    That needs no warning: an engine that still loads when the server ends is always killed.
    """
    # What its interpreter's flags are made of.
    with mock.patch.object(sys, "warnoptions", [*sys.warnoptions, _NO_WARNING]):
        resource_tracker.ensure_running()


def note(pids: list[int]) -> None:
    """From now on, adds the ids of the processes that this thread forks to `pids`: they are not its children."""
    _here.pids = pids


class _Process(ForkServerProcess):
    """Has the environment of the process that started it, and ends with that one, not with the fork server."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()
        if self.pid and hasattr(_here, "pids"):
            _here.pids.append(self.pid)

    def run(self) -> None:
        parent = multiprocessing.parent_process()
        assert parent
        lifetime.end_with(parent.sentinel)
        # Not all of it, see `runtime.unset`.
        os.environ.update(self._environment.items() - os.environ.items())
        super().run()


class Context(ForkServerContext):
    """In place of `multiprocessing.get_context("spawn")`."""

    Process = _Process
