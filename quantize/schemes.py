"""The quantization schemes by name, as `--scheme` takes them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Scheme:
    """One way of storing the weights of the linear layers. Heads, embeddings and norms stay as they are."""

    name: str
    # What makes it, and what vLLM finds in config.json as `quant_method`.
    method: Literal["compressed-tensors", "bitsandbytes"]
    bits: int
    summary: str


_ALL = (
    Scheme("w8a8", "compressed-tensors", 8, "int8 weights and activations: half the size, faster on CPU and GPU"),
    Scheme("w4a16", "compressed-tensors", 4, "int4 weights in groups: a quarter of the size, fast on GPU only"),
    Scheme("nf4", "bitsandbytes", 4, "4-bit normal float: a quarter of the size, decoders and RoBERTa"),
    Scheme("int8", "bitsandbytes", 8, "LLM.int8: half the size, outliers kept in 16 bits, decoders and RoBERTa"),
)
SCHEMES = {scheme.name: scheme for scheme in _ALL}

# Weights that share one scale, largest first: fewer scales to store, and the sizes that vLLM's kernels know.
GROUP_SIZES = (128, 64, 32)
