"""Checks, before anything is loaded, whether one more model fits into memory.

The check is a slightly conservative estimate from the checkpoint's size; only starting the engine can tell for sure.
"""

import subprocess

from tuneserve import checkpoint
from tuneserve.machine.runtime import has_nvidia_gpu
from tuneserve.server.call.errors import WrongState
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.hardware import available_memory, detect
from tuneserve.v1 import checkpoint_pb2 as pb

_GIB = 1 << 30
# Code and working memory of an engine's processes, in addition to weights and KV cache.
_PROCESSES = int(1.5 * _GIB)


def check(config: ModelConfig, manifest: pb.Checkpoint, copies: int = 1) -> None:
    """Raises WrongState if `copies` of the model would not fit, saying how much they need and how much is free."""
    if has_nvidia_gpu():
        total, free = _gpu_memory()
        needed, where = int(total * config.gpu_memory_utilization), "on the GPU; lower gpu_memory_utilization"
    else:
        hardware = detect(config, manifest)
        cache = hardware.kv_cache_bytes if manifest.task == pb.TASK_GENERATION else 0
        # 16-bit weights that are computed with in 32 bits take twice their size; quantized ones less, which is not
        # known here.
        widened = 2 if hardware.dtype == "float32" and manifest.dtype != "float32" else 1
        needed, free = checkpoint.size_of(manifest) * widened + cache + _PROCESSES, available_memory()
        where = "on this machine"
    needed *= copies
    if needed > free:
        raise WrongState(
            f"the model needs about {needed / _GIB:.1f} GiB and {free / _GIB:.1f} GiB are free {where}; unload another",
            "NO_MEMORY",
        )


def _gpu_memory() -> tuple[int, int]:
    """Total and free bytes of the first GPU."""
    query = ["nvidia-smi", "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits"]
    line = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    total, free = (int(part) << 20 for part in line.split(","))
    return total, free
