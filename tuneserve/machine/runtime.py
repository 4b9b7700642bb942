"""The CPU runtime that makes PyTorch and vLLM fast: preloaded libraries, threads and time slices.

Intel's OpenMP and tcmalloc, loaded before Python starts, give 5 to 9 times the throughput of an encoder on two cores.
The dynamic loader reads LD_PRELOAD only when a process starts, so the program restarts itself, once. Child processes
inherit the setting.
"""

import ctypes
import logging
import os
import platform
import shutil
import struct
import sys
from collections.abc import Mapping
from glob import glob
from pathlib import Path

logger = logging.getLogger(__name__)

# Installed by intel-openmp into the environment; tcmalloc comes with the distribution (libtcmalloc-minimal4).
_LIBRARIES = {
    "libiomp5": (f"{sys.prefix}/lib/libiomp5.so",),
    "libtcmalloc": (
        "/usr/lib/*/libtcmalloc_minimal.so.4",
        "/usr/lib/*/libtcmalloc.so.4",
        "/usr/lib64/libtcmalloc_minimal.so.4",
        "/usr/lib64/libtcmalloc.so.4",
    ),
}
_DONE = "TUNESERVE_PRELOADED"
# sched_setattr(2) on x86-64 and its struct, whose sched_runtime is a time slice since Linux 6.12.
_SCHED_SETATTR, _SCHED_ATTR = 314, "IIQiIQQQ"
_SHORTEST_SLICE = 100_000  # ns


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver is loaded."""
    return Path("/proc/driver/nvidia/version").exists()


def engine_environment() -> dict[str, str]:
    """Returns the environment variables that make vLLM fast here; none on a machine with an NVIDIA driver.

    By default on CPUs, vLLM runs the model in a process beside the engine's, on all cores but one: that core is used up
    by the two processes polling for each other's messages. In one process, the model has all cores.

    vLLM's sampler compiles a small function when a call first asks for logprobs, even in eager mode. Without a
    compiler, as in an image, that would fail: then nothing is compiled.
    """
    if has_nvidia_gpu():
        return {}
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    without = {} if compiler else {"TORCH_COMPILE_DISABLE": "1"}
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **without, **_thread_environment()}


def _thread_environment() -> dict[str, str]:
    """Returns the environment variables for OpenMP on CPUs, for training and for engines.

    By default an idle thread keeps its core busy for 200 ms: beside other busy programs, training took up to twice as
    long. In a forked process, Intel's OpenMP binds each thread to a core, also if that core is busy: an engine read 0.6
    times as many texts a second. OpenMP also ignores a container's CPU limit: with a thread for every core, the
    container would be throttled again and again.
    """
    limit = cpu_limit()
    return {"KMP_BLOCKTIME": "1", "KMP_AFFINITY": "none"} | ({"OMP_NUM_THREADS": str(limit)} if limit else {})


def unset(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables that are not set. To set one again would move it in memory, and then a process
    can't change its title any more.
    """
    return {name: value for name, value in environment.items() if name not in os.environ}


def cpu_limit(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Returns how many cores' time the container may use, at least 1; 0 without a limit."""
    try:
        quota, period = file.read_text(encoding="ascii").split()
    except OSError:
        return 0
    return 0 if quota == "max" else max(1, int(quota) // int(period))


def _ask_for_short_slices() -> None:
    """Asks the scheduler for the shortest time slice, for this process and its children, at the same niceness.

    Threads that compute together wait for each other thousands of times a second, and a thread that wakes up has to
    wait until the longer slice of another program is over. Beside two busy programs of nice 10, training took 3.4
    times as long as alone, and with this 1.1 times. Linux before 6.12 ignores it.
    """
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = struct.pack(
        _SCHED_ATTR, struct.calcsize(_SCHED_ATTR), os.SCHED_OTHER, 0, nice, 0, _SHORTEST_SLICE, 0, 0
    )
    # A sandbox may forbid it; then nothing is changed.
    ctypes.CDLL(None).syscall(_SCHED_SETATTR, 0, attributes, 0)


def preload() -> None:
    """Restarts the program with the libraries preloaded; returns if they are, or can't be. Logs missing libraries.

    Does nothing on a machine with an NVIDIA driver, on other systems than Linux on x86-64, and after the restart.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64" or has_nvidia_gpu():
        return
    _ask_for_short_slices()
    os.environ.update(unset(_thread_environment()))
    present = os.environ.get("LD_PRELOAD", "")
    found = {
        name: sorted(path for pattern in patterns for path in glob(pattern)) for name, patterns in _LIBRARIES.items()
    }
    missing = [name for name, paths in found.items() if not paths and name not in present]
    wanted = [paths[0] for name, paths in found.items() if paths and name not in present]
    if os.environ.get(_DONE) or not wanted:
        if missing:
            logger.warning("%s not found: slower on CPU (docs/serving.md, the CPU runtime)", " and ".join(missing))
        return
    os.environ[_DONE] = "1"
    os.environ["LD_PRELOAD"] = ":".join([*wanted, *filter(None, [present])])
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
