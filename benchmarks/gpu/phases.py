"""The phases of a run and their times: the roofs of the device first, then a model each, with all of its systems, and
at last our server with several processes, where a model is so small that one front end may be busy before the device.

The systems of a phase are up at the same time, so that they are measured in turns, and start at the same time, so that
little time is lost. Where the device has too little memory for all of them, a model has several phases.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuneserve.benchmarks.gpu.shapes import MODELS, TINY, Shape
from tuneserve.benchmarks.serving import systems
from tuneserve.benchmarks.serving.systems import Engine
from tuneserve.machine.runtime import has_nvidia_gpu
from tuneserve.machine.tiers import this_tier

ROOFS = "roofs"
# The systems, each with the engine settings of `engine`.
OURS, SERVE, RUST, IN_PROCESS = "ours", "vllm serve", "vllm serve in Rust", "LLM"
# Seconds of an H200 with 16 cores, of which a start takes about two thirds: an estimate.
_ROOFS_SECONDS = 20
_SECONDS = {"minilm": 85, "llama-1b": 90, "bert-base": 70, "llama-8b": 105, "tiny-bert": 90, "tiny-llama": 90}
_PROCESSES_SECONDS = {"minilm": 55, "llama-1b": 55, "tiny-bert": 60}
_CACHE_BYTES = {True: 1 << 28, False: 4 << 30}
# CUDA's own, graphs, and what a step computes with.
_OVERHEAD_BYTES = 5 << 29
_USED_SHARE = 0.95


@dataclass(frozen=True)
class Variant:
    """A system with weights in a scheme; ours may have several processes, each with an engine."""

    system: str
    scheme: str
    processes: int = 1

    @property
    def label(self) -> str:
        """For people."""
        several = f" with {self.processes} processes" if self.processes > 1 else ""
        return f"{self.system}{several}, {self.scheme}"


@dataclass(frozen=True)
class Phase:
    """A part of the run with a time of its own. Without a model: the roofs."""

    name: str
    seconds: float  # that it should take
    shape: Shape | None = None
    variants: tuple[Variant, ...] = ()
    several: bool = False  # compares numbers of processes


def phases(tiny: bool, memory: int | None) -> list[Phase]:
    """The phases in order, on a device with so many bytes of memory; None where that is no limit."""
    found, shapes = [Phase(ROOFS, _ROOFS_SECONDS)], TINY if tiny else MODELS
    whole = [Phase(shape.name, _SECONDS[shape.name], shape, _variants(shape)) for shape in shapes]
    for shape in shapes:
        if shape.name in _PROCESSES_SECONDS:
            seconds = _PROCESSES_SECONDS[shape.name]
            whole.append(Phase(f"{shape.name}-processes", seconds, shape, _processes(), several=True))
    for phase in whole:
        for number, group in enumerate(_grouped(phase, memory, tiny), 1):
            name = phase.name if number == 1 else f"{phase.name}-{number}"
            taken = phase.seconds * (1 if number == 1 else 2 / 3)
            found.append(replace(phase, name=name, seconds=taken, variants=group))
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


def _variants(shape: Shape) -> tuple[Variant, ...]:
    """First the systems with weights in bf16, then our server with quantized ones."""
    names, schemes = [OURS, SERVE, IN_PROCESS], ["fp8", "w8a8", "w4a16"]
    if not has_nvidia_gpu():
        # On a CPU only the tests run, where a start takes half a minute of a core: with one of the models each.
        names = [OURS, IN_PROCESS if shape.pooling else SERVE]
        schemes = ["w8a8"] if shape.pooling or not this_tier().int4 else ["w4a16"]
    if not shape.pooling and systems.has_rust():
        names.append(RUST)
    return *(Variant(name, "bf16") for name in names), *(Variant(OURS, scheme) for scheme in schemes)


def _processes() -> tuple[Variant, ...]:
    return tuple(Variant(OURS, "bf16", count) for count in ((1, 2, 4) if has_nvidia_gpu() else (1, 2)))


def _grouped(phase: Phase, memory: int | None, tiny: bool) -> list[tuple[Variant, ...]]:
    """Groups of systems that fit into the memory together."""
    assert phase.shape
    groups: list[list[Variant]] = [[]]
    used = 0.0
    for variant in phase.variants:
        # Processes share the cache.
        needed = variant.processes * (phase.shape.memory(variant.scheme) + _OVERHEAD_BYTES) + _cache(phase.shape, tiny)
        if groups[-1] and memory is not None and used + needed > memory * _USED_SHARE:
            groups.append([])
            used = 0.0
        groups[-1].append(variant)
        used += needed
    return [tuple(group) for group in groups]
