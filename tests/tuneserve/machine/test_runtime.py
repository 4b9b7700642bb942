"""What is told of the machine."""

import ctypes
import os
import platform
import struct
import subprocess
import sys

import pytest

from tuneserve.machine import runtime


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
    code = "import os; from tuneserve.machine.runtime import preload; preload(); print(os.environ['KMP_BLOCKTIME'])"
    unset = {key: value for key, value in os.environ.items() if key not in ("KMP_BLOCKTIME", "TUNESERVE_PRELOADED")}

    def printed(**more: str) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=unset | more, capture_output=True, text=True, check=True).stdout.strip()

    if sys.platform == "linux" and platform.machine() == "x86_64" and not runtime.has_nvidia_gpu():
        assert printed() == "1"
    assert printed(KMP_BLOCKTIME="50") == "50"


FORKS = """
import os
from tuneserve.machine.runtime import preload

preload()
import torch

if os.fork():
    os.wait()
else:
    torch.ones(512, 512) @ torch.ones(512, 512)
    print(sorted(len(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")), flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(platform.machine() != "x86_64" or runtime.has_nvidia_gpu(), reason="set on CPUs")
def test_threads_of_a_forked_process_may_run_on_every_core():
    """OpenMP binds them otherwise, but not those of the process that forked."""
    left_out = ("LD_PRELOAD", "TUNESERVE_PRELOADED", "KMP_AFFINITY")
    environment = {key: value for key, value in os.environ.items() if key not in left_out} | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", FORKS], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([len(os.sched_getaffinity(0))] * 2)


@pytest.mark.skipif(platform.machine() != "x86_64" or runtime.has_nvidia_gpu(), reason="set on CPUs")
def test_threads_that_wake_up_come_before_other_busy_programs(capfd):
    """A short time slice, also after the restart and in children, with the niceness that the program began with."""
    release = tuple(int(part) for part in platform.release().split(".")[:2])
    if release < (6, 12):
        pytest.skip("Linux has slices of one's own since 6.12")
    child = "from tests.tuneserve.machine.test_runtime import print_slice; print_slice()"
    code = "import subprocess, sys; from tuneserve.machine.runtime import preload; preload(); "
    code += f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    unset = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "TUNESERVE_PRELOADED")}
    subprocess.run(["nice", "-n", "3", sys.executable, "-c", code], env=unset, check=True)
    nice, slice_ns = capfd.readouterr().out.split()
    assert (int(nice), int(slice_ns)) == (min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19), 100_000)


@pytest.mark.skipif(runtime.has_nvidia_gpu(), reason="GPUs need a compiler")
def test_engines_on_cpus_do_without_a_compiler(tmp_path, monkeypatch):
    """As in an image: vLLM compiles small functions even in eager mode, first when a call asks for logprobs."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    environment = os.environ | runtime.engine_environment() | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    code = "import torch; print(torch.compile(lambda x: x + 1)(torch.zeros(2)).tolist())"
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.stdout == "[1.0, 1.0]\n", ended.stderr


def print_slice() -> None:
    """Prints the niceness and the time slice in nanoseconds, as sched_getattr(2) has them."""
    attributes = ctypes.create_string_buffer(48)
    assert ctypes.CDLL(None).syscall(315, 0, attributes, 48, 0) == 0
    _, _, _, nice, _, slice_ns, *_ = struct.unpack("IIQiIQQQ", attributes.raw)
    print(nice, slice_ns)


def test_variables_that_are_set_are_not_set_again(monkeypatch):
    monkeypatch.setenv("KMP_BLOCKTIME", "5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert runtime.unset({"KMP_BLOCKTIME": "1", "OMP_NUM_THREADS": "2"}) == {"OMP_NUM_THREADS": "2"}
