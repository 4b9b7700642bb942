"""The seam between the server and whatever runs the model: five methods and what passes through them.

Above it is gRPC, text and tokenizers; below it are token ids and numbers. `engine.py` has the real one, on vLLM;
the tests have a small fake, so that everything above runs without a model.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry


class EngineFailed(Exception):
    """The engine died or gave no answer; nothing about the request was wrong."""


class RequestRefused(Exception):
    """The engine would not take the request. The message names the sampling field or says what is too long."""


@dataclass(frozen=True)
class Encoded:
    """One tokenized input, special tokens included."""

    token_ids: Sequence[int]
    # Position of the first token of the second text, for models that tell the two texts of a pair apart.
    pair_start: int | None = None


@dataclass(frozen=True)
class Sampling:
    """How to generate; already validated, every default filled in."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    n: int = 1
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True)
class Alternative:
    """A token that could stand at a position; `logprob` is a natural logarithm."""

    token_id: int
    logprob: float
    text: str


@dataclass(frozen=True)
class Logprob:
    """The token that stands at a position, and the likeliest ones, best first."""

    token_id: int
    logprob: float
    alternatives: Sequence[Alternative]


@dataclass(frozen=True)
class Delta:
    """New output of one of a request's completions. `finish` is set on its last."""

    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Logprob] = ()
    finish: Literal["stop", "length"] | None = None
    stop_text: str = ""
    prompt_logprobs: Sequence[Logprob] = ()


class Engine(Protocol):
    """What runs one model. All methods may be called concurrently; cancelling one frees what it held."""

    max_length: int  # tokens, prompt and completion together
    vocab_size: int
    registry: CollectorRegistry  # the engine's own metrics

    async def pool(
        self, request_id: str, inputs: Sequence[Encoded], task: Literal["classify", "token_classify"]
    ) -> list[NDArray[np.float32]]:
        """Returns logits, one array an input: (labels,) for classify, (tokens, labels) for token_classify."""

    def generate(
        self, request_id: str, token_ids: Sequence[int], sampling: Sampling, stream: bool
    ) -> AsyncGenerator[list[Delta], None]:
        """Yields what is new since the last item; one item with everything when `stream` is false."""

    async def ping(self) -> None:
        """Goes through the engine's loop and back. Raises EngineFailed when it is dead; hangs when that hangs."""

    async def close(self) -> None:
        """Ends the engine's processes."""
