"""What is told of the machine."""

import os
import platform
import subprocess
import sys

import pytest

from tuneserve import runtime


@pytest.mark.parametrize(
    ("content", "cores"),
    [("max 100000\n", 0), ("400000 100000\n", 4), ("250000 100000\n", 2), ("50000 100000\n", 1)],
)
def test_cpu_limit(tmp_path, content, cores):
    file = tmp_path / "cpu.max"
    file.write_text(content)
    assert runtime.cpu_limit(file) == cores


def test_no_cpu_limit_is_none(tmp_path):
    assert runtime.cpu_limit(tmp_path / "missing") == 0


def test_idle_threads_give_their_cores_away_in_every_program():
    """Training as well as the engines; what is set already stands."""
    code = "import os; from tuneserve.runtime import preload; preload(); print(os.environ['KMP_BLOCKTIME'])"
    unset = {key: value for key, value in os.environ.items() if key not in ("KMP_BLOCKTIME", "TUNESERVE_PRELOADED")}

    def printed(**more: str) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=unset | more, capture_output=True, text=True, check=True).stdout.strip()

    if sys.platform == "linux" and platform.machine() == "x86_64" and not runtime.has_nvidia_gpu():
        assert printed() == "1"
    assert printed(KMP_BLOCKTIME="50") == "50"
