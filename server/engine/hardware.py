"""Engine settings that depend on the machine: device, dtype and memory.

vLLM's own defaults are for GPUs. On a CPU, `dtype auto` picks the type of the checkpoint, which the CPU may only
emulate, many times slower (`tiers.py`), and the KV cache would take most of the memory. Needs neither torch nor vLLM.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tuneserve.errors import UserError
from tuneserve.machine.tiers import GPU, Tier, saturation, this_tier
from tuneserve.server.config import ModelConfig
from tuneserve.v1 import checkpoint_pb2 as pb

_GIB = 1 << 30
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Hardware:
    """Engine settings that follow from the machine and the checkpoint."""

    dtype: str
    kv_cache_bytes: int  # 0 leaves it to vLLM
    enforce_eager: bool  # no CUDA graphs, no compilation: on CPU that costs 80 s at start for a few percent
    why: str = ""  # the dtype, the hardware and the reason, in one line
    warnings: tuple[str, ...] = ()  # settings that perform badly on this machine, each in one line


def detect(config: ModelConfig, manifest: pb.Checkpoint) -> Hardware:
    """Returns the settings for one model on this machine. Raises UserError if vLLM has no kernels for it here."""
    tier = this_tier()
    dtype, reason = _dtype(config, manifest, tier)
    why = f"computes in {dtype} on {tier.title}: {reason}"
    warnings = tuple(filter(None, (_slow(config, tier), saturation(manifest, config.path, tier))))
    if tier is GPU:
        # vLLM still refuses to start where less than `gpu_memory_utilization` is free.
        return Hardware(dtype, int((config.kv_cache_gib or 0) * _GIB), enforce_eager=False, why=why, warnings=warnings)
    # By default an eighth of the free memory for each model, so that several models fit with their weights. Always set:
    # otherwise vLLM takes 0.9 of the machine's memory. Encoders have no KV cache and allocate nothing.
    gib = config.kv_cache_gib or min(2.0, max(0.5, available_memory() / 8 / _GIB))
    return Hardware(dtype, int(gib * _GIB), enforce_eager=True, why=why, warnings=warnings)


def _slow(config: ModelConfig, tier: Tier) -> str:
    if tier is GPU or config.dtype in ("auto", "float32", tier.dtype):
        return ""
    return (
        f"dtype {config.dtype} is emulated on {tier.title}, several times slower than {tier.dtype}, "
        "which dtype: auto would choose"
    )


def _dtype(config: ModelConfig, manifest: pb.Checkpoint, tier: Tier) -> tuple[str, str]:
    """Returns the dtype that a model computes in, and the reason."""
    if manifest.quantization == "w4a16" and not tier.int4:
        raise UserError(
            f"{config.path}: w4a16 can't be served on {tier.title}: vLLM's 4-bit kernels need AVX-512",
            "serve the checkpoint it was made from, or another scheme",
        )
    if config.dtype != "auto":
        return config.dtype, "so configured"
    if manifest.quantization == "w4a16" and tier.dtype == "float32":
        return "bfloat16", "vLLM's 4-bit kernels take no float32"
    return tier.dtype, tier.why


def memory() -> int:
    """Returns the bytes of memory that the container may use, or the machine has."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = _CGROUP.joinpath("memory.max").read_text().strip()
    except OSError:
        return installed
    return min(installed, int(limit)) if limit.isdigit() else installed


def available_memory() -> int:
    """Returns the bytes that are free or easily freed, within the container's limit."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    try:
        limit, used, kinds = (_CGROUP.joinpath(f"memory.{name}").read_text() for name in ("max", "current", "stat"))
    except OSError:
        return available
    if not limit.strip().isdigit():
        return available
    # Inactive file pages are reclaimed before any process is killed.
    [cached] = [int(line.split()[1]) for line in kinds.splitlines() if line.startswith("inactive_file ")]
    return max(0, min(available, int(limit) - int(used) + cached))
