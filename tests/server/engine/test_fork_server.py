"""Processes of the fork server. Here it imports next to nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(directory: Path, code: str, how: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    """A program that begins with `fork_server.start` or `fork_server.fork`. It ends after all that it started."""
    script = directory / "script.py"
    script.write_text(code)
    command = [sys.executable, script, how]
    return subprocess.run(command, capture_output=True, text=True, check=True, **more)


FORKS = """
import json, multiprocessing, os, sys, threading
import setproctitle
from tuneserve.server.engine import fork_server

def tell(answers):
    setproctitle.setproctitle("an engine")
    titles = [open(f"/proc/{one}/cmdline").read() for one in (os.getppid(), os.getpid())]
    titled = ["forkserver" in titles[0], titles[1].startswith("an engine")]
    worker = multiprocessing.get_context("spawn").Process(target=int)
    worker.start()
    worker.join(60)
    answers.put([os.getpid(), os.getppid(), *titled, worker.exitcode, os.environ["SET_LATER"], made])

def fork(answers):
    process = fork_server.Context().Process(target=tell, args=(answers,))
    process.start()
    process.join(60)
    return process

made = __name__
if __name__ == "__main__":
    fork_server._PRELOADED = "json"
    made = "before"
    getattr(fork_server, sys.argv[1])()
    os.environ["SET_LATER"] = "yes"
    answers, pids = fork_server.Context().SimpleQueue(), []
    thread = threading.Thread(target=lambda: (fork_server.note(pids), fork(answers)))
    thread.start()
    thread.join()
    ended = fork(answers)
    print(json.dumps({"noted": pids, "told": [answers.get(), answers.get()], "ended": [ended.pid, ended.exitcode]}))
"""


@pytest.mark.parametrize("how", ["start", "fork"])
def test_an_engine_has_its_servers_environment_and_is_known_to_its_starters_thread(tmp_path, how):
    done = run(tmp_path, FORKS, how)
    found = json.loads(done.stdout)
    (first, its_parent, *seen), (second, parent, *seen_again) = found["told"]
    assert its_parent == parent
    # Only a copy knows what its main module has done.
    assert seen == seen_again == [True, True, 0, "yes", "before" if how == "fork" else "__mp_main__"]
    assert found["noted"] == [first]
    assert found["ended"] == [second, 0]
    assert not done.stderr


KILLED = """
import multiprocessing, signal, sys
from tuneserve.server.engine import fork_server

def hold(told):
    lock = multiprocessing.get_context("spawn").Lock()
    told.put(lock._semlock.name)
    signal.pause()

if __name__ == "__main__":
    fork_server._PRELOADED = "json"
    getattr(fork_server, sys.argv[1])()
    told = fork_server.Context().SimpleQueue()
    process = fork_server.Context().Process(target=hold, args=(told,))
    process.start()
    print(told.get())
    process.kill()
    process.join(60)
"""


@pytest.mark.parametrize("how", ["start", "fork"])
def test_what_a_killed_engine_leaves_is_removed_without_a_warning(tmp_path, how):
    # Until the resource tracker has ended, too: it has the same standard error.
    done = run(tmp_path, KILLED, how)
    assert not done.stderr
    assert not Path("/dev/shm", f"sem.{done.stdout.strip().removeprefix('/')}").exists()


SIGNALLED = """
import multiprocessing, os, signal, sys
from tuneserve.server.engine import fork_server

def wait(told):
    told.put(os.getsid(0))
    signal.pause()

if __name__ == "__main__":
    fork_server._PRELOADED = "json"
    getattr(fork_server, sys.argv[1])()
    told = fork_server.Context().SimpleQueue()
    process = fork_server.Context().Process(target=wait, args=(told,))
    process.start()
    assert told.get() == os.getsid(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    process.join(1)
    print(process.is_alive())
    process.kill()
"""


@pytest.mark.parametrize("how", ["start", "fork"])
def test_a_signal_to_the_servers_group_does_not_reach_its_engines(tmp_path, how):
    """Their session is the server's."""
    done = run(tmp_path, SIGNALLED, how, start_new_session=True)
    assert done.stdout == "True\n"
