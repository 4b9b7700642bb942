"""What machine this is, and the CPU runtime that PyTorch and vLLM are fast on.

Intel's OpenMP and tcmalloc, loaded before Python starts, are worth 5 to 9 times the throughput of an encoder on two
cores. The dynamic loader reads LD_PRELOAD only when a process starts, so the program replaces itself with itself,
once. Child processes inherit it.
"""

import ctypes
import logging
import os
import platform
import struct
import sys
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
    """Returns what vLLM should find in its environment to be fast here; nothing on a machine with an NVIDIA driver.

    On CPUs it would run the model in a process beside the engine's, on all cores but one: that one goes to the two
    processes' looking for each other's messages, in loops. In one process, the model has all cores.
    """
    return {} if has_nvidia_gpu() else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **_thread_environment()}


def _thread_environment() -> dict[str, str]:
    """Returns what OpenMP should find in its environment on CPUs, in training as in engines.

    A thread that has nothing to do would keep its core for 200 ms from those who have: beside other busy programs,
    training took up to twice as long. A container's limit is no core less to OpenMP: it would be stopped again and
    again for having computed on all of them.
    """
    limit = cpu_limit()
    return {"KMP_BLOCKTIME": "1"} | ({"OMP_NUM_THREADS": str(limit)} if limit else {})


def cpu_limit(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Returns how many cores' time the container may use, at least 1; 0 without a limit."""
    try:
        quota, period = file.read_text(encoding="ascii").split()
    except OSError:
        return 0
    return 0 if quota == "max" else max(1, int(quota) // int(period))


def _ask_for_short_slices() -> None:
    """Asks the scheduler for the shortest time slice, for this process and those that it starts; at the same niceness.

    Threads that compute together wait for each other thousands of times a second, and one that wakes up comes after
    whoever has a longer slice only when that slice is over. Beside two busy programs of nice 10, training took 3.4
    times as long as alone, and with this 1.1 times. Linux before 6.12 ignores it.
    """
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = struct.pack(
        _SCHED_ATTR, struct.calcsize(_SCHED_ATTR), os.SCHED_OTHER, 0, nice, 0, _SHORTEST_SLICE, 0, 0
    )
    # What a sandbox forbids is done without.
    ctypes.CDLL(None).syscall(_SCHED_SETATTR, 0, attributes, 0)


def preload() -> None:
    """Restarts the program with the libraries loaded; returns when they are, or can't be. Logs what is missing.

    Does nothing on a machine with an NVIDIA driver, on other systems than Linux on x86-64, and the second time.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64" or has_nvidia_gpu():
        return
    _ask_for_short_slices()
    os.environ.update(_thread_environment() | os.environ)
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
