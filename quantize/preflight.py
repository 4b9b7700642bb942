"""Refuses, at once and with the reason, checkpoints that could be quantized but not served.

vLLM's CPU platform refuses nothing early: an unsupported checkpoint loads, and fails at its first forward or is very
slow. So scheme, platform and architecture are checked here, from config.json and the headers of the weight files alone;
no tensor is read and nothing heavy is imported.
"""

import json
import re
import struct
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.checkpoint.layers import block_of
from tuneserve.errors import UserError
from tuneserve.machine import tiers
from tuneserve.machine.tiers import Tier
from tuneserve.quantize import methods
from tuneserve.quantize.schemes import GROUP_SIZES, SCHEMES, Recipe, Scheme
from tuneserve.v1 import checkpoint_pb2 as pb

# vLLM's bitsandbytes loader needs a model class that declares its packed layers; of the encoders only this one does.
_BITSANDBYTES_ENCODERS = {"RobertaForSequenceClassification", "XLMRobertaForSequenceClassification"}
# Encoders: class names alone don't tell them from decoders with a classification head.
_ENCODERS = re.compile(r"(Bert|Roberta|Electra|Deberta|MPNet|XLNet|Funnel|Camembert|Flaubert)", re.IGNORECASE)
_CONV1D = re.compile(r"GPT2|OpenAIGPT")
# The CPU kernels for 4-bit weights work on tiles: output and input size of a layer must be multiples of these.
_CPU_TILES = {"w4a16": (32, 32), "nf4": (32, 64)}
# vLLM's CPU attention supports an fp8 KV cache only if the head size is a multiple of this.
_CPU_CACHE_HEAD = 32
# The lowest compute capability that computes with 8-bit floats; below, they would only save memory.
_FP8_CAPABILITY = 8.9
# On CPUs only int8 may be faster than no quantization, depending on the tier (tiers.py); the other schemes save memory
# (benchmarks/results).
_BY_SPEED_CPU = ("w8a8", "w4a16", "int8", "nf4")
_BY_SPEED_GPU = ("fp8", "w8a8", "w4a16", "w8a16", "nf4", "int8")


@dataclass(frozen=True)
class Platform:
    """The machine that the checkpoint will be served on."""

    tier: Tier
    # CUDA compute capability, e.g. 9.0 for Hopper; 0 when unknown.
    capability: float = 0.0

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU; if not, it is a CPU."""
        return self.tier is tiers.GPU


def this_platform() -> Platform:
    """Returns the platform of this machine."""
    tier = tiers.this_tier()
    return Platform(tier, _capability() if tier is tiers.GPU else 0.0)


def check(
    scheme_name: str,
    manifest: pb.Checkpoint,
    directory: Path,
    platform: Platform,
    method: str = "rtn",
    fp8_cache: bool = False,
    reduce_range: bool = False,
) -> Recipe:
    """Returns the recipe for the checkpoint. Raises UserError, with the reason, for one that can't be served.

    Weights of w8a8 get a reduced range if asked for, or if this platform needs it.
    """
    scheme = SCHEMES.get(scheme_name)
    if scheme is None:
        raise UserError(f"scheme {scheme_name!r} is unknown", f"allowed: {', '.join(SCHEMES)}, auto")
    check_checkpoint(manifest, directory)
    config = _config(directory)
    reason = _platform_reason(scheme, manifest, platform) or _architecture_reason(scheme, manifest, config)
    if reason:
        raise UserError(f"{scheme.name} can't be served: {reason}", _alternatives(scheme, manifest, platform))
    if method not in scheme.methods:
        raise UserError(f"{scheme.name} has no method {method!r}", f"allowed: {', '.join(scheme.methods)}")
    if reason := methods.unfit(method, config.get("model_type", "")):
        raise UserError(f"{method} is not for {manifest.architecture}: {reason}", "choose another --method")
    if fp8_cache and (reason := _cache_reason(scheme, manifest, config, platform)):
        raise UserError(f"--kv-cache fp8 can't be served: {reason}", "leave it out")
    layers = linear_shapes(directory)
    if not layers:
        raise UserError(f"{directory}: no linear layers in numbered blocks, so nothing to quantize")
    if not platform.is_gpu:
        _check_tiles(scheme, layers)
    size = group_size(layers) if scheme.name == "w4a16" else None
    reduced = scheme.name == "w8a8" and (reduce_range or not platform.tier.int8_exact)
    return Recipe(scheme, method, size, fp8_cache, reduced)


def check_checkpoint(manifest: pb.Checkpoint, directory: Path) -> None:
    """Raises UserError for a checkpoint that no scheme quantizes."""
    if manifest.quantization:
        raise UserError(
            f"{directory}: already quantized ({manifest.quantization})",
            "quantize the checkpoint that finetune or merge wrote, in its original precision",
        )


def served(
    manifest: pb.Checkpoint, directory: Path, platform: Platform, fp8_cache: bool = False, reduce_range: bool = False
) -> list[Recipe]:
    """Returns the recipes that can be served here, with the one expected to be the fastest on this platform first."""
    found = []
    for scheme in _BY_SPEED_GPU if platform.is_gpu else _BY_SPEED_CPU:
        with suppress(UserError):
            found.append(check(scheme, manifest, directory, platform, "rtn", fp8_cache, reduce_range))
    return found


def remarks(recipe: Recipe, platform: Platform) -> list[str]:
    """Returns remarks on a scheme on this platform, shown before it is measured."""
    tier, found = platform.tier, []
    if recipe.reduce_range and not tier.int8_exact:
        found.append(
            f"w8a8 weights are kept within ±64: over the full range, their products would saturate on {tier.title}"
        )
    if recipe.scheme.name == "w8a8" and not tier.int8_fast:
        found.append(f"w8a8 saves memory on {tier.title}; whether it is faster than {tier.dtype} is measured")
    return found


def model_type(directory: Path) -> str:
    """Returns the kind of model, as config.json names it."""
    return str(_config(directory).get("model_type", ""))


def _config(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return config


def group_size(layers: dict[str, tuple[int, int]]) -> int:
    """Returns the largest group size that divides the input size of every layer, given as (output, input)."""
    for size in GROUP_SIZES:
        if all(inputs % size == 0 for _, inputs in layers.values()):
            return size
    name, (_, inputs) = next((n, s) for n, s in layers.items() if s[1] % GROUP_SIZES[-1])
    raise UserError(
        f"w4a16 can't be served: no group size of {GROUP_SIZES} divides the input size of {name}, {inputs}",
        "use w8a8, which needs no groups",
    )


def linear_shapes(directory: Path) -> dict[str, tuple[int, int]]:
    """Returns (output size, input size) by name of each linear layer that a scheme quantizes, from the file headers."""
    shapes = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
        for name, tensor in header.items():
            if block_of(name) is not None and name.endswith(".weight") and len(tensor["shape"]) == 2:
                shapes[name.removesuffix(".weight")] = tuple(tensor["shape"])
    return shapes


def _platform_reason(scheme: Scheme, manifest: pb.Checkpoint, platform: Platform) -> str:
    name, capability = scheme.name, platform.capability
    if not platform.is_gpu:
        if name == "fp8":
            return "CPUs have no instructions for 8-bit floats: it would be many times slower than the original"
        if name == "w8a16":
            return "vLLM's CPU kernels for weight-only schemes support 4 bits, not 8"
        if name == "w4a16" and not platform.tier.int4:
            return f"vLLM's 4-bit CPU kernels need AVX-512, and this is {platform.tier.title}"
        if name == "w4a16" and manifest.dtype not in ("bfloat16", "float16"):
            return f"vLLM's 4-bit CPU kernels need a bfloat16 or float16 checkpoint, not {manifest.dtype}"
    elif scheme.format == "compressed-tensors" and capability:
        if capability < 7.5:
            return f"it needs a GPU of compute capability 7.5 or newer, this one has {capability}"
        if name == "fp8" and capability < _FP8_CAPABILITY:
            return (
                f"8-bit floats need a GPU of compute capability {_FP8_CAPABILITY} or newer, this one has {capability}"
            )
        if name == "w8a8" and capability >= 10:
            return f"vLLM has no int8 kernels for GPUs of compute capability {capability}"
    return ""


def _cache_reason(scheme: Scheme, manifest: pb.Checkpoint, config: dict[str, Any], platform: Platform) -> str:
    if manifest.task != pb.TASK_GENERATION:
        return "a classifier has no KV cache"
    if scheme.format != "compressed-tensors":
        return f"{scheme.name} can't store the scales of the cache"
    if config.get("model_type") not in methods.LLAMA_LIKE:
        return f"its scales are supported only for {', '.join(methods.LLAMA_LIKE)}"
    if platform.is_gpu:
        below = 0 < platform.capability < _FP8_CAPABILITY
        return f"it needs a GPU of compute capability {_FP8_CAPABILITY} or newer" if below else ""
    if not platform.tier.fp8_cache:
        return f"on CPUs it needs AVX-512, and this is {platform.tier.title}"
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return (
        f"on CPUs a head's size must be a multiple of {_CPU_CACHE_HEAD}, not {head}" if head % _CPU_CACHE_HEAD else ""
    )


def _architecture_reason(scheme: Scheme, manifest: pb.Checkpoint, config: dict[str, Any]) -> str:
    architecture = manifest.architecture
    if _CONV1D.match(architecture):
        return f"the layers of {architecture} are Conv1D, not linear, and would not be quantized"
    if any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        return f"{architecture} is a mixture of experts, whose routers and experts need schemes of their own"
    if scheme.format == "bitsandbytes":
        if manifest.task == pb.TASK_TOKEN_CLASSIFICATION:
            return f"vLLM's bitsandbytes loader does not support token classifiers ({architecture})"
        if _ENCODERS.search(architecture) and architecture not in _BITSANDBYTES_ENCODERS:
            return f"vLLM's bitsandbytes loader supports decoders and RoBERTa classifiers, not {architecture}"
    return ""


def _alternatives(refused: Scheme, manifest: pb.Checkpoint, platform: Platform) -> str:
    fit = [
        scheme.name
        for scheme in SCHEMES.values()
        if scheme is not refused
        and not _platform_reason(scheme, manifest, platform)
        and not _architecture_reason(scheme, manifest, {})
    ]
    return f"supported for this model on this machine: {', '.join(fit)}" if fit else "serve it as it is"


def _check_tiles(scheme: Scheme, layers: dict[str, tuple[int, int]]) -> None:
    outputs, inputs = _CPU_TILES.get(scheme.name, (1, 1))
    for name, shape in layers.items():
        if shape[0] % outputs or shape[1] % inputs:
            raise UserError(
                f"{scheme.name} can't be served: on CPU a layer's output size must be a multiple of {outputs} and "
                f"its input size of {inputs}; {name} has {shape[0]} and {shape[1]}",
                "use w8a8, which takes any size",
            )


def _capability() -> float:
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.split()
        return min(map(float, found), default=0.0)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0.0
