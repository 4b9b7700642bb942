"""The machine tiers, and the dtype of each: the one table for training, quantization and serving.

The tier follows from the processor's flags; torch and vLLM are not needed. `ONEDNN_MAX_CPU_ISA` and
`ATEN_CPU_CAPABILITY` restrict oneDNN and PyTorch to fewer instructions than the processor has. They also restrict the
tier, so that one machine can be measured and tested as another. (vLLM's own kernels depend on the processor alone.)
"""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneserve.machine.runtime import has_nvidia_gpu
from tuneserve.v1 import checkpoint_pb2 as pb


@dataclass(frozen=True)
class Tier:
    """A kind of machine."""

    name: str  # in a checkpoint's lineage
    title: str
    # The dtype that models compute in, whatever the dtype of their file; `auto` leaves it to vLLM.
    dtype: Literal["auto", "float32", "bfloat16"]
    why: str
    # Without VNNI the products of int8 weights and activations are added in pairs in 16 bits, and saturate: weights
    # within ±64 are exact, those of the full range are not (the bound is derived in quantize/methods.py).
    int8_exact: bool
    # Whether w8a8 is faster than `dtype`.
    int8_fast: bool
    # vLLM's kernels for 4-bit weights, which take 16-bit activations, and for a KV cache of 8-bit floats.
    int4: bool
    fp8_cache: bool


_EMULATED = "bfloat16 would be emulated, which is slower"

# Time in bfloat16 divided by time in float32, of vLLM's forward of a small BERT with 1 to 32 texts of 32 tokens, in
# interleaved rounds on one core restricted to each tier: AVX2 2.7 to 4.4 (38 for a plain matrix product on a machine
# with AVX2 only), AVX-512 with and without VNNI 2.0 to 2.4, AVX-512 with bf16 0.5 to 0.7.
# For 16 streams of tokens of a small Llama 3.3, 2.3 and 0.6; a single stream, which reads weights and computes little,
# is the exception: 0.93, 0.80 and 0.63.
# AVX-VNNI was not measured: its row follows oneDNN's documentation. On AVX2, w8a8 reached 0.93 of float32's rate.
OTHER = Tier("cpu", "a CPU other than x86 with AVX2", "float32", "nothing else was measured", True, False, False, False)
AVX2 = Tier("cpu-avx2", "AVX2", "float32", _EMULATED, False, False, False, False)
AVX2_VNNI = Tier("cpu-avx2-vnni", "AVX2 with AVX-VNNI", "float32", _EMULATED, True, True, False, False)
AVX512 = Tier("cpu-avx512", "AVX-512 without VNNI", "float32", _EMULATED, False, False, True, True)
AVX512_VNNI = Tier("cpu-avx512-vnni", "AVX-512 with VNNI", "float32", _EMULATED, True, True, True, True)
AVX512_BF16 = Tier("cpu-avx512-bf16", "AVX-512 with bf16 or AMX", "bfloat16", "it is native", True, True, True, True)
GPU = Tier("gpu", "GPU", "auto", "left to vLLM", True, True, True, True)

# What PyTorch and vLLM mean by AVX-512.
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})
_BF16 = frozenset({"avx512_bf16", "amx_bf16"})
# The flags that each level of oneDNN leaves; other levels restrict nothing.
_ONEDNN: dict[str, frozenset[str]] = {
    "AVX2": frozenset({"avx2"}),
    "AVX2_VNNI": frozenset({"avx2", "avx_vnni"}),
    "AVX2_VNNI_2": frozenset({"avx2", "avx_vnni"}),
    "AVX512_CORE": frozenset({"avx2", *_AVX512}),
    "AVX512_CORE_VNNI": frozenset({"avx2", "avx_vnni", "avx512_vnni", *_AVX512}),
}
_ONEDNN |= dict.fromkeys(("SSE41", "AVX"), frozenset[str]())
_ATEN = {"default": frozenset[str](), "avx2": frozenset({"avx2", "avx_vnni"})}


def this_tier() -> Tier:
    """Returns the tier of this machine, with the restrictions of the environment."""
    return GPU if has_nvidia_gpu() else tier_of(cpu_flags(), os.environ)


def measured_on() -> str:
    """Returns the machine of a measurement, for a checkpoint's lineage: the tier, and the name of a GPU."""
    tier = this_tier()
    if tier is not GPU:
        return tier.name
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        names = []
    return " ".join([tier.name, *names[:1]])


def tier_of(flags: frozenset[str], environment: Mapping[str, str]) -> Tier:
    """Returns the tier of a CPU with these flags, by Linux's names, in an environment that may restrict it."""
    level = environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA") or ""
    for left in (_ONEDNN.get(level.upper()), _ATEN.get(environment.get("ATEN_CPU_CAPABILITY", ""))):
        flags = flags if left is None else flags & left
    if flags >= _AVX512:
        if flags & _BF16:
            return AVX512_BF16
        return AVX512_VNNI if "avx512_vnni" in flags else AVX512
    if "avx2" in flags:
        return AVX2_VNNI if "avx_vnni" in flags else AVX2
    return OTHER


def saturation(manifest: pb.Checkpoint, directory: Path, tier: Tier) -> str:
    """Returns a warning with a remedy if a checkpoint's int8 products would saturate on a tier; otherwise ""."""
    if tier.int8_exact or not _has_int8_products(manifest, directory):
        return ""
    if manifest.lineage and dict(manifest.lineage[-1].config).get("reduce_range"):
        return ""
    return (
        f"its int8 weights have the full range, and their products saturate on {tier.title}: its quality is lower than "
        "where it was measured; quantize it again with --reduce-range"
    )


def _has_int8_products(manifest: pb.Checkpoint, directory: Path) -> bool:
    if manifest.quantization != "compressed-tensors":
        return manifest.quantization == "w8a8"
    # Made by another program: only its config.json says how it is quantized.
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    groups = (config["quantization_config"].get("config_groups") or {}).values()
    numbers = [group[key] for group in groups for key in ("weights", "input_activations") if group.get(key)]
    inputs = any(group.get("input_activations") for group in groups)
    return inputs and any(one.get("type") == "int" and one.get("num_bits") == 8 for one in numbers)


def cpu_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Returns the processor's instruction sets by Linux's names, e.g. avx512f; empty if they can't be read."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").partition(":")[2].split())
