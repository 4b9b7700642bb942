"""No orphans: whoever started a process, and is killed, takes it along. Killed here as the system does it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tuneserve.server.engine import processes as engine_processes

# As `tuneserve demo`, `evaluate` and `quantize` do it; a server without models, which needs no engine.
LAUNCHES = """
import sys, time
from tuneserve.serving import launched
with launched("--config", sys.argv[1]) as server:
    print(server.process.pid, flush=True)
    time.sleep(300)
"""
# The same with two processes: says one of them.
LAUNCHES_TWO = """
import psutil, sys, time
from tuneserve.serving import launched
with launched("--config", sys.argv[1], "--processes", "2") as server:
    print(psutil.Process(server.process.pid).children()[1].pid, flush=True)
    time.sleep(300)
"""
# As vLLM does it, from a thread that does not live as long as the process; `tuneserve.cli` is the server's main module.
STARTS = """
import multiprocessing, os, sys, threading, time
from tuneserve.server.engine import fork_server

if sys.argv[1] == "spawn":
    from tuneserve import cli

fork_server._PRELOADED = "json"

def compute():
    while threading.active_count() > 1:  # until it knows its parent
        time.sleep(0.01)
    print(os.getpid(), flush=True)
    while True:
        pass

def start():
    context = multiprocessing.get_context("spawn") if sys.argv[1] == "spawn" else fork_server.Context()
    context.Process(target=compute).start()

if __name__ == "__main__":
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    time.sleep(300)
"""


def started_by(script: str, folder: Path, *arguments: object) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """Runs a script, and returns it with the process that it says it has started."""
    path = folder / "script.py"
    path.write_text(script)
    starter = subprocess.Popen([sys.executable, path, *map(str, arguments)], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    return starter, psutil.Process(int(starter.stdout.readline()))


def end_alone(starter: subprocess.Popen[bytes], started: psutil.Process) -> None:
    """Kills the first, and looks after the second."""
    try:
        assert engine_processes.runs(started)
        starter.kill()
        starter.wait()
        engine_processes.wait_for_end([started], 20)
        assert not engine_processes.runs(started)
    finally:
        engine_processes.kill([started])
        starter.kill()
        starter.communicate()


@pytest.mark.parametrize("state", ["computing", "stopped"])
@pytest.mark.parametrize("how", ["spawn", "fork server"])
def test_a_killed_server_leaves_no_engine(tmp_path, how, state):
    starter, engine = started_by(STARTS, tmp_path, how)
    if state == "stopped":
        os.kill(engine.pid, signal.SIGSTOP)
    end_alone(starter, engine)


@pytest.mark.parametrize("launches", [LAUNCHES, LAUNCHES_TWO], ids=["one process", "two"])
def test_a_killed_program_leaves_no_server(tmp_path, launches):
    config = tmp_path / "server.yaml"
    config.write_text("admin_listen: 127.0.0.1:0\n")
    end_alone(*started_by(launches, tmp_path, config))
