"""How long a process lives: no longer than the one that started it, however that one ended.

Who is killed can't end what it started. So the kernel does it: a pipe hangs up when the last process that holds its
other end is gone, and a pipe can be told to send a signal then. That also ends a process that hangs or is stopped; and
unlike PR_SET_PDEATHSIG it does not care which thread started it, or when that thread ends.
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
    """Has a process that was spawned by `multiprocessing` end with the one that started it.

    Called when the program's main module is imported: a spawned process imports it again, before it does anything.
    """
    if multiprocessing.current_process().name != "MainProcess":
        threading.Thread(target=_watch_parent, name="watch the parent", daemon=True).start()


def _watch_parent() -> None:
    # The pipe is known once all that the parent writes to it was read. If the parent ends before, that reading fails.
    while (parent := multiprocessing.parent_process()) is None:
        time.sleep(_POLL_SECONDS)
    end_with(parent.sentinel)


def end_with(pipe: int) -> None:
    """Has this process killed once nobody holds the other end of a pipe, or something is written to it."""
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    # Where that has happened already, no signal comes any more.
    hung_up = select.poll()
    hung_up.register(pipe, select.POLLIN)
    if hung_up.poll(0):
        os.kill(os.getpid(), signal.SIGKILL)
