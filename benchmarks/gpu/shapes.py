"""The models that are measured: the shapes of well-known ones, and what their work costs at least. Knows numbers only.

The least time of a step is what its matrix products take at the measured roof of the device, or what reading its
weights and its KV cache takes, whichever is longer. Norms, activations, attention's products, sampling and what runs on
the CPU come on top: no system reaches the roof.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# Bytes of a weight by scheme, and the type that its products are computed in. A group of 4-bit weights has a scale.
GROUP_SIZE = 128
SCHEMES = {"bf16": 2.0, "fp8": 1.0, "w8a8": 1.0, "w4a16": 0.5 + 2 / GROUP_SIZE}
COMPUTED_IN = {"bf16": "bf16", "fp8": "fp8", "w8a8": "int8", "w4a16": "bf16"}
_BF16 = 2


@dataclass(frozen=True)
class Shape:
    """A BERT that classifies texts, or a Llama."""

    name: str
    pooling: bool  # a BERT
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False  # one matrix for embeddings and output

    @property
    def head_size(self) -> int:
        """Dimensions of an attention head."""
        return self.hidden // self.heads

    @property
    def linear(self) -> int:
        """Weights of the matrices in the layers: what a scheme quantizes, and each token is multiplied with."""
        if self.pooling:
            return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * self.head_size
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def output(self) -> int:
        """Weights of the output matrix, which no scheme quantizes; the two labels of a classifier cost nothing."""
        return 0 if self.pooling else self.vocabulary * self.hidden

    @property
    def cache_bytes(self) -> int:
        """Of a token in the KV cache; encoders have none."""
        return 0 if self.pooling else 2 * self.layers * self.kv_heads * self.head_size * _BF16

    def read_bytes(self, scheme: str) -> float:
        """The weights that a step reads; of the embeddings it reads only a few rows."""
        return self.linear * SCHEMES[scheme] + self.output * _BF16

    def memory(self, scheme: str) -> float:
        """Bytes of all weights."""
        embeddings = 0 if self.tied else self.vocabulary * self.hidden
        return self.read_bytes(scheme) + embeddings * _BF16


MODELS = (
    Shape("minilm", True, 384, 1536, 6, 12, 12, 30522),
    Shape("llama-1b", False, 2048, 8192, 16, 32, 8, 128256, tied=True),
    Shape("bert-base", True, 768, 3072, 12, 12, 12, 30522),
    Shape("llama-8b", False, 4096, 14336, 32, 32, 8, 128256),
)
# For the tests, on a CPU.
TINY = (
    Shape("tiny-bert", True, 128, 256, 1, 4, 4, 1000),
    Shape("tiny-llama", False, 128, 256, 1, 4, 2, 1000, tied=True),
)


@dataclass(frozen=True)
class Roofs:
    """What the device reached: bytes a second, and operations a second by type (bf16, fp8, int8)."""

    bandwidth: float
    operations: Mapping[str, float]

    def texts_a_second(self, shape: Shape, scheme: str, tokens: float, at_once: int) -> float | None:
        """The most texts of `tokens` tokens, `at_once` in a step. None where the type was not measured."""
        seconds = self._step(shape, scheme, at_once * tokens, 0)
        return at_once / seconds if seconds else None

    def tokens_a_second(self, shape: Shape, scheme: str, prompt: int, output: int, streams: int) -> float | None:
        """The most output tokens: prompts of `prompt` tokens first, then a step for each further token."""
        first = self._step(shape, scheme, streams * prompt, 0)
        # On average, a step finds half of the output in the cache.
        step = self._step(shape, scheme, streams, streams * (prompt + output / 2) * shape.cache_bytes)
        return streams * output / (first + (output - 1) * step) if first and step else None

    def _step(self, shape: Shape, scheme: str, tokens: float, cache_bytes: float) -> float | None:
        rate = self.operations.get(COMPUTED_IN[scheme])
        if rate is None:
            return None
        computing = 2 * shape.linear * tokens / rate
        return max(computing, (shape.read_bytes(scheme) + cache_bytes) / self.bandwidth)
