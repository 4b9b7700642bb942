"""The phases of a run and their times: the roofs of the device first, then a model each, with all of its systems.

The systems of a phase are up at the same time, so that they are measured in turns, and start at the same time, so that
little time is lost. Where the device has too little memory for all of them, a model has several phases.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from tuneserve.benchmarks.gpu.shapes import MODELS, TINY, Shape
from tuneserve.benchmarks.serving import systems
from tuneserve.benchmarks.serving.systems import Engine
from tuneserve.machine.runtime import has_nvidia_gpu
from tuneserve.machine.tiers import this_tier

ROOFS = "roofs"
# The systems, each with the engine settings of `engine`.
OURS, SERVE, RUST, IN_PROCESS = "ours", "vllm serve", "vllm serve in Rust", "LLM"
# Seconds of an H200 with 16 cores, of which a start takes about two thirds: an estimate.
_ROOFS_SECONDS = 30
_SECONDS = {"minilm": 100, "llama-1b": 110, "bert-base": 90, "llama-8b": 150, "tiny-bert": 90, "tiny-llama": 90}
_CACHE_BYTES = {True: 1 << 28, False: 4 << 30}
# CUDA's own, graphs, and what a step computes with.
_OVERHEAD_BYTES = 5 << 29
_USED_SHARE = 0.95


@dataclass(frozen=True)
class Variant:
    """A system with weights in a scheme."""

    system: str
    scheme: str

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.system}, {self.scheme}"


@dataclass(frozen=True)
class Phase:
    """A part of the run with a time of its own. Without a model: the roofs."""

    name: str
    seconds: float  # that it should take
    shape: Shape | None = None
    variants: tuple[Variant, ...] = ()


def phases(tiny: bool, memory: int | None) -> list[Phase]:
    """The phases in order, on a device with so many bytes of memory; None where that is no limit."""
    found = [Phase(ROOFS, _ROOFS_SECONDS)]
    for shape in TINY if tiny else MODELS:
        groups = _grouped(shape, _variants(shape), memory, tiny)
        for number, group in enumerate(groups, 1):
            name = shape.name if number == 1 else f"{shape.name}-{number}"
            found.append(Phase(name, _SECONDS[shape.name] * (1 if number == 1 else 2 / 3), shape, group))
    return found


def planned(tiny: bool) -> list[Phase]:
    """The phases on this machine."""
    if not has_nvidia_gpu():
        return phases(tiny, None)
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    return phases(tiny, int(found[0]) << 20)


def share(left: Sequence[Phase], seconds: float) -> float:
    """The seconds of the first of the phases that are left, when all of them have `seconds`."""
    return seconds * left[0].seconds / sum(phase.seconds for phase in left)


def engine(shape: Shape, tiny: bool) -> Engine:
    """The engine's settings, the same for all systems."""
    on_cpu = not has_nvidia_gpu()
    return Engine(
        max_model_len=None if shape.pooling else 1024,
        max_num_batched_tokens=2048 if on_cpu else 8192,
        kv_cache_memory_bytes=_cache(shape, tiny),
        block_size=32 if on_cpu and not shape.pooling else None,
        enforce_eager=on_cpu,
        load_format="dummy",
    )


def _cache(shape: Shape, tiny: bool) -> int:
    return _CACHE_BYTES[tiny or shape.pooling]


def _variants(shape: Shape) -> list[Variant]:
    """First the systems with weights in bf16, then our server with quantized ones."""
    names, schemes = [OURS, SERVE, IN_PROCESS], ["fp8", "w8a8", "w4a16"]
    if not has_nvidia_gpu():
        # On a CPU only the tests run, where a start takes half a minute of a core: with one of the models each.
        names = [OURS, IN_PROCESS if shape.pooling else SERVE]
        schemes = ["w8a8"] if shape.pooling or not this_tier().int4 else ["w4a16"]
    if not shape.pooling and systems.has_rust():
        names.append(RUST)
    return [*(Variant(name, "bf16") for name in names), *(Variant(OURS, scheme) for scheme in schemes)]


def _grouped(shape: Shape, variants: list[Variant], memory: int | None, tiny: bool) -> list[tuple[Variant, ...]]:
    """Groups of systems that fit into the memory together."""
    groups: list[list[Variant]] = [[]]
    used = 0.0
    for variant in variants:
        needed = shape.memory(variant.scheme) + _cache(shape, tiny) + _OVERHEAD_BYTES
        if groups[-1] and memory is not None and used + needed > memory * _USED_SHARE:
            groups.append([])
            used = 0.0
        groups[-1].append(variant)
        used += needed
    return [tuple(group) for group in groups]
