"""zentorch on CPUs, loaded into vLLM's worker processes: its products of 8-bit weights on AMD's AVX-512.

Where zentorch is installed, vLLM 0.32 takes it for every product and for the attention of encoders. On two cores of Zen
5 its 8-bit products were faster than oneDNN's, and encoders in bfloat16 slower (benchmarks/NOTES.md). So our processes
don't see it when they import vLLM, and only the kernel for w8a8 loads it, when a model has such weights.

The import fails if vLLM does not have its class and function where they are expected.
"""

import importlib
import sys

from vllm.model_executor.kernels.linear.scaled_mm.zentorch import ZentorchInt8ScaledMMLinearKernel
from vllm.platforms import _is_amd_zen_cpu

from tuneserve.machine import tiers

__all__ = ["Worker"]


class Worker:
    """The class that vLLM's `worker_extension_cls` names; only the import of this file matters."""


def is_supported(*_: object) -> tuple[bool, str | None]:
    """Whether the kernel can be used, and why not: as its own method, but for the products alone."""
    if not _is_amd_zen_cpu() or tiers.this_tier() is not tiers.AVX512_BF16:
        return False, "made for AMD's CPUs with AVX-512 and bf16"
    if sys.modules.get("zentorch", ...) is None:
        del sys.modules["zentorch"]
    try:
        importlib.import_module("zentorch")
    except (ImportError, OSError) as error:
        return False, f"zentorch can't be imported: {error}"
    return True, None


ZentorchInt8ScaledMMLinearKernel.is_supported = is_supported
