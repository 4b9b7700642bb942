"""What the engine needs to know of the machine: where it runs, in which type, with how much memory.

vLLM's own defaults are for GPUs. On a CPU `dtype auto` picks what the file holds, which may be emulated there and many
times slower (`tiers.py`), and the KV cache would take most of the memory. Needs neither torch nor vLLM.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tuneserve.errors import UserError
from tuneserve.server.config import ModelConfig
from tuneserve.tiers import GPU, Tier, saturation, this_tier
from tuneserve.v1 import checkpoint_pb2 as pb

_GIB = 1 << 30
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Hardware:
    """Engine settings that follow from the machine and the checkpoint."""

    dtype: str
    kv_cache_bytes: int  # 0 leaves it to vLLM
    enforce_eager: bool  # no CUDA graphs, no compilation: on CPU that costs 80 s at start for a few percent
    why: str = ""  # in which type, on what, and for which reason, in one line
    warnings: tuple[str, ...] = ()  # what is worse here than it could be, each in one line


def detect(config: ModelConfig, manifest: pb.Checkpoint) -> Hardware:
    """Returns the settings for one model on this machine. Raises UserError for what vLLM has no kernels for here."""
    tier = this_tier()
    dtype, reason = _dtype(config, manifest, tier)
    why = f"computes in {dtype} on {tier.title}: {reason}"
    warnings = tuple(filter(None, (_slow(config, tier), saturation(manifest, config.path, tier))))
    if tier is GPU:
        return Hardware(dtype, 0, enforce_eager=False, why=why, warnings=warnings)
    # An eighth of what is free, for each model, so that several fit beside their weights. Always given: without it
    # vLLM asks for 0.9 of the machine. Encoders have no KV cache and allocate none of it.
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
    """Returns the type that a model computes in, and why."""
    if manifest.quantization == "w4a16" and not tier.int4:
        raise UserError(
            f"{config.path}: w4a16 can't be served on {tier.title}: vLLM's 4-bit kernels need AVX-512",
            "serve the checkpoint that it was made of, or another scheme",
        )
    if config.dtype != "auto":
        return config.dtype, "so configured"
    if manifest.quantization == "w4a16" and tier.dtype == "float32":
        return "bfloat16", "vLLM's 4-bit kernels take no float32"
    return tier.dtype, tier.why


def available_memory() -> int:
    """Bytes that are free or easily freed, within the container's limit."""
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
    # Pages of files that were not used for long are given back before anything is killed.
    [cached] = [int(line.split()[1]) for line in kinds.splitlines() if line.startswith("inactive_file ")]
    return max(0, min(available, int(limit) - int(used) + cached))
