"""The quantization schemes by name, as `--scheme` takes them, and the recipe for applying one."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Scheme:
    """A format for the weights of the linear layers. Heads, embeddings and norms are not quantized."""

    name: str
    # The library that makes it, which vLLM finds in config.json as `quant_method`.
    format: Literal["compressed-tensors", "bitsandbytes"]
    bits: int
    # Methods of rounding (methods.py), the best in our measurements first (benchmarks/results); `rtn` needs no data.
    methods: tuple[str, ...]


_ALL = (
    Scheme("w8a8", "compressed-tensors", 8, ("rtn", "smoothquant", "gptq", "smoothquant-gptq")),
    Scheme("fp8", "compressed-tensors", 8, ("rtn",)),
    Scheme("w8a16", "compressed-tensors", 8, ("rtn", "gptq")),
    Scheme("w4a16", "compressed-tensors", 4, ("gptq", "awq", "rtn")),
    Scheme("nf4", "bitsandbytes", 4, ("rtn",)),
    Scheme("int8", "bitsandbytes", 8, ("rtn",)),
)
SCHEMES = {scheme.name: scheme for scheme in _ALL}

# Weights that share one scale, largest first, for fewer scales; these are the sizes that vLLM's kernels support.
GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint will be quantized."""

    scheme: Scheme
    method: str = "rtn"
    # Input weights that share a scale; None for one scale per output channel.
    group_size: int | None = None
    # Whether the KV cache is stored in fp8, with scales from the calibration rows.
    fp8_cache: bool = False
    # Weights of w8a8 within ±64, half of what fits, so that no product saturates on CPUs without VNNI (methods.py).
    reduce_range: bool = False
    # Numbers of the blocks that are left unquantized.
    kept: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """A short description for people."""
        kept = f"without block{'s' * (len(self.kept) > 1)} {', '.join(map(str, self.kept))}" if self.kept else ""
        cache = "with an fp8 cache" if self.fp8_cache else ""
        reduced = "of reduced range" if self.reduce_range else ""
        return " ".join(filter(None, (self.scheme.name, self.method, reduced, cache, kept)))

    @property
    def needs_rows(self) -> bool:
        """Whether it needs calibration rows."""
        return self.method != "rtn" or self.fp8_cache
