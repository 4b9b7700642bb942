"""Ends a process together with the process that started it, however that one ended.

A killed process can't end its children. So the kernel does it: a pipe hangs up when the last process that holds its
other end is gone, and can send a signal then. That also ends a process that hangs or is stopped; and unlike with
PR_SET_PDEATHSIG, it does not matter which thread started the process, or when that thread ends.
"""

import fcntl
import multiprocessing
import os
import select
import signal
import threading
import time

_POLL_SECONDS = 0.05


def end_with_parent() -> None:
    """Ends a process that was spawned by `multiprocessing` together with its parent.

    Call it when the program's main module is imported: a spawned process imports that again before anything else.
    """
    if multiprocessing.current_process().name != "MainProcess":
        threading.Thread(target=_watch_parent, name="watch the parent", daemon=True).start()


def _watch_parent() -> None:
    # The pipe is known once all data from the parent was read. If the parent ends before, that reading fails.
    while (parent := multiprocessing.parent_process()) is None:
        time.sleep(_POLL_SECONDS)
    end_with(parent.sentinel)


def end_with(pipe: int) -> None:
    """Lets the kernel kill this process once no process holds the pipe's other end, or something is written to it."""
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    # If that has already happened, no signal is sent any more.
    hung_up = select.poll()
    hung_up.register(pipe, select.POLLIN)
    if hung_up.poll(0):
        os.kill(os.getpid(), signal.SIGKILL)
