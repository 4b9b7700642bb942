"""Standard error by a thread: see also promises/test_observability.py, where nobody reads it."""

import select
import subprocess
import sys

WRITES = """
import os, time
from tuneserve.server.call import logs
written, real = [], os.write
os.write = lambda fd, data: (written.append(data), len(data))[1]
stderr = logs.Stderr()
for number in range(300):
    stderr.write(f"line {number} {'x' * 100}\\n")
stderr.write("y" * 10_000 + "\\n")
stderr.write("the last\\n")
stderr.drain()
os.write = real
print(len(written), max(map(len, written[:-2])), all(data.endswith(b"\\n") for data in written), flush=True)
print(b"".join(written).decode(), end="")
"""


def test_lines_that_come_together_go_out_together_and_whole() -> None:
    """No more at once than a pipe takes whole, so that no line of another process comes in between."""
    result = subprocess.run([sys.executable, "-P", "-c", WRITES], capture_output=True, text=True, timeout=60)
    counted, *lines = result.stdout.splitlines()
    writes, longest, whole = counted.split()
    assert lines == [*(f"line {number} {'x' * 100}" for number in range(300)), "y" * 10_000, "the last"]
    assert whole == "True"
    assert int(writes) < 30
    assert int(longest) <= select.PIPE_BUF
