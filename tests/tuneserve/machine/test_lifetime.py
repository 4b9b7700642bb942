"""A process ends with the one that holds the other end of its pipe. Servers that do: promises/test_orphans.py."""

import os
import signal
import subprocess
import sys

import pytest

ENDS = """
import sys, time
from tuneserve.machine import lifetime
sys.stdin.read(1)  # it has begun; the pipe may hang up before it is watched, or later
lifetime.end_with(0)
print("watched", flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_pipe_that_hangs_up_kills_even_a_process_that_is_stopped(is_stopped: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"x")
    process.stdin.flush()
    assert process.stdout.readline() == b"watched\n"
    assert process.poll() is None
    if is_stopped:
        os.kill(process.pid, signal.SIGSTOP)
    process.stdin.close()
    assert process.wait(20) == -signal.SIGKILL
    process.stdout.close()


def test_one_that_had_hung_up_before_kills_at_once() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDS], input=b"x", stdout=subprocess.PIPE, timeout=60)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, b"")
