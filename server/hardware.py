"""What the engine needs to know of the machine: where it runs, in which type, with how much memory.

vLLM's own defaults are for GPUs. On a CPU `dtype auto` can pick float16, which is ten times slower there, and the
KV cache would take most of the memory. Needs neither torch nor vLLM.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tuneserve.runtime import cpu_has_bf16, has_nvidia_gpu
from tuneserve.server.config import ModelConfig
from tuneserve.v1 import checkpoint_pb2 as pb

_GIB = 1 << 30


@dataclass(frozen=True)
class Hardware:
    """Engine settings that follow from the machine and the checkpoint."""

    dtype: str
    kv_cache_bytes: int  # 0 leaves it to vLLM
    enforce_eager: bool  # no CUDA graphs, no compilation: on CPU that costs 80 s at start for a few percent


def detect(config: ModelConfig, manifest: pb.Checkpoint) -> Hardware:
    """Returns the settings for one model on this machine."""
    if has_nvidia_gpu():
        return Hardware(config.dtype, 0, enforce_eager=False)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if cpu_has_bf16() or manifest.dtype != "float32" else "float32"
    # An eighth of what is free, for each model, so that several fit beside their weights. Always given: without it
    # vLLM asks for 0.9 of the machine. Encoders have no KV cache and allocate none of it.
    gib = config.kv_cache_gib or min(2.0, max(0.5, available_memory() / 8 / _GIB))
    return Hardware(dtype, int(gib * _GIB), enforce_eager=True)


def available_memory() -> int:
    """Bytes that are free or easily freed, within the container's limit."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return available
    return min(available, int(limit)) if limit.isdigit() else available
