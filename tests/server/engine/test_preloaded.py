"""What the fork server imports: after it, a process may be forked."""

import json
import os
import subprocess
import sys

PRELOADS = """
import gc, json, os
from tuneserve.server.engine import preloaded
print(json.dumps([os.listdir("/proc/self/task"), gc.isenabled(), gc.get_freeze_count()]))
"""


def test_it_starts_no_thread_and_leaves_all_to_no_collector():
    done = subprocess.run([sys.executable, "-c", PRELOADS], capture_output=True, text=True, check=True)
    threads, collects, frozen = json.loads(done.stdout)
    assert len(threads) == 1
    assert collects
    assert frozen > 100_000


def test_without_a_compiler_nothing_is_compiled():
    code = "from tuneserve.server.engine import preloaded; from torch._dynamo import config; print(config.disable)"
    without = os.environ | {"CXX": "no-such-compiler"}
    done = subprocess.run([sys.executable, "-c", code], env=without, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
