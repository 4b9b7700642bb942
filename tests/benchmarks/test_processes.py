import os
import subprocess
import sys
import time

from tuneserve.benchmarks import processes

# A leader that works a little and starts a child that works more, and holds 64 MiB.
PROGRAM = """
import subprocess, sys, time
def work(seconds):
    while time.process_time() < seconds: pass
if sys.argv[1:] == ["child"]:
    held = bytearray(64 << 20); work(0.6)
    print("done", flush=True); sys.stdin.read()
else:
    child = subprocess.Popen([sys.executable, "-c", sys.orig_argv[2], "child"], stdin=0, stdout=1)
    work(0.2); child.wait()
"""


def test_a_program_is_its_session() -> None:
    before, machine = processes.usage(os.getsid(0)), processes.machine_cpu()
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        while (used := processes.usage(process.pid)).leader < 0.15:
            time.sleep(0.05)
        [child] = processes.named(process.pid, "\n child")
        assert not processes.named(os.getsid(0), "\n child")
        process.communicate()
    assert used.others >= 0.5
    assert used.cpu == used.leader + used.others
    assert used.resident > 64 << 20
    assert child.pid != process.pid
    assert processes.machine_cpu() - machine >= 0.6
    # It has left nothing, and was none of ours.
    assert processes.usage(process.pid) == processes.Usage(0, 0, 0)
    assert processes.usage(os.getsid(0)).since(before).leader >= 0


def test_nothing_that_was_started_is_left_not_even_an_orphan() -> None:
    # In a process of its own, because all of its children are killed.
    program = """
import psutil, subprocess, sys
from tuneserve.benchmarks import processes
processes.adopt_orphans()
nested = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=2).pid)"
orphan = int(subprocess.run([sys.executable, "-c", nested], stdout=subprocess.PIPE, text=True, check=True).stdout)
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
assert {one.pid for one in psutil.Process().children()} == {orphan, child.pid}
processes.end_children()
print(psutil.pid_exists(orphan), psutil.pid_exists(child.pid))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "False False\n", ended.stderr
