"""The seam between the server and whatever runs the model: a few methods and what passes through them.

Above it is gRPC, text and tokenizers; below it are token ids and numbers. `engine.py` has the real one, on vLLM;
the tests have a small fake, so that everything above runs without a model.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry


class EngineFailed(Exception):
    """The engine died or gave no answer; nothing about the request was wrong.

    `told` is what callers may know of it. The engine's own words may repeat the prompt.
    """

    told = "the model's engine failed"


class RequestRefused(Exception):
    """The engine would not take the request. `field` is the sampling field, where the engine named one.

    The engine's own words stay out of the message: they may repeat the prompt.
    """

    def __init__(self, field: str = "") -> None:
        super().__init__(field)
        self.field = field


PoolTask: TypeAlias = Literal["classify", "token_classify", "embed"]


@dataclass(frozen=True)
class Ticket:
    """What goes with a request beside its content."""

    request_id: str  # unique among all requests of the engine
    priority: int = 0  # lower goes first
    adapter: str = ""  # as given to `load_adapter`; the model itself when empty
    salt: str = ""  # nothing is cached between requests of different ones
    trace: Mapping[str, str] = field(default_factory=dict)  # W3C trace headers
    # Told how many tokens of a request that ended early were written and are in no item.
    lost: Callable[[int], object] = lambda tokens: None


@dataclass(frozen=True)
class Encoded:
    """One tokenized input, special tokens included."""

    token_ids: Sequence[int]
    # Position of the first token of the second text, for models that tell the two texts of a pair apart.
    pair_start: int | None = None


@dataclass(frozen=True)
class StructuredOutput:
    """What the text made must look like. `value` is JSON text, a pattern, a grammar, or the texts to choose from."""

    kind: Literal["json", "regex", "grammar", "choice"]
    value: str | Sequence[str]


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
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: Sequence[int] = ()
    bad_words: Sequence[str] = ()
    include_stop_text: bool = False
    skip_special_tokens: bool = True
    structured: StructuredOutput | None = None


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
class ToolCall:
    """A call of a tool that a model wants made, or what is new of it: id and name come first.

    `arguments` is JSON text, or a part of it.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Delta:
    """New output of one of a request's completions. `finish` is set on its last.

    From the engine all of it is `text`: parsers take it apart.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Logprob] = ()
    finish: Literal["stop", "length", "tool_calls"] | None = None
    stop_text: str = ""
    stop_token_id: int | None = None
    prompt_logprobs: Sequence[Logprob] = ()
    reasoning: str = ""
    tool_calls: Sequence[ToolCall] = ()


@dataclass(frozen=True)
class Parts:
    """What a text that a model wrote is made of, or what is new of it."""

    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ToolCall] = ()


class AnswerParser(Protocol):
    """Takes one completion apart, whole or piece by piece.

    It reads what a model wrote, which callers may have made it write: it may take long, and raise anything.
    """

    def whole(self, text: str, token_ids: Sequence[int]) -> Parts:
        """Returns the parts of a completion that ended."""

    def more(self, text: str, token_ids: Sequence[int], finished: bool) -> Parts:
        """Returns what is new with some more of a completion, `finished` with the last of it."""


@dataclass(frozen=True)
class Parsing:
    """How the completions of one chat are taken apart."""

    parser: Callable[[], AnswerParser]  # makes one for each
    special_tokens: bool  # the text has to have them


class Parsers(Protocol):
    """The parsers of one model's answers."""

    def chat(
        self, tools: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any], token_ids: Sequence[int]
    ) -> Parsing | None:
        """Returns how answers to a chat are taken apart, by the tools that they may call, the arguments of its template
        and what that made of it; None where there is nothing to take apart.
        """


class Engine(Protocol):
    """What runs one model. All methods may be called concurrently; cancelling one frees what it held.

    What was made has to be closed, also when it was never started, or its start failed or was cancelled.
    """

    # Known once it was started.
    max_length: int  # tokens, prompt and completion together
    max_num_seqs: int  # requests in one step
    vocab_size: int
    registry: CollectorRegistry  # the engine's own metrics
    parsers: Parsers | None  # none unless the model's settings name some

    async def start(self) -> None:
        """Loads the model. Raises whatever was wrong."""

    async def pool(self, ticket: Ticket, inputs: Sequence[Encoded], task: PoolTask) -> list[NDArray[np.float32]]:
        """Returns one array an input: logits (labels,) for classify, (tokens, labels) for token_classify; for embed
        the vector as the model gives it, not scaled.
        """

    def generate(
        self, ticket: Ticket, token_ids: Sequence[int], sampling: Sampling, stream: bool
    ) -> AsyncGenerator[list[Delta], None]:
        """Yields what is new since the last item; one item with everything when `stream` is false."""

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Makes a LoRA adapter ready under a name that is never used for other content."""

    async def unload_adapter(self, name: str) -> None:
        """Forgets an adapter."""

    async def ping(self) -> None:
        """Goes through the engine's loop and back. Raises EngineFailed when it is dead; hangs when that hangs."""

    def cpu_seconds(self) -> Mapping[int, float]:
        """CPU time that each of the engine's processes has used, by its id: grows while it computes, or loads."""

    def kill(self) -> None:
        """Ends the engine's processes at once, stopped or hung ones too. Whatever waits raises EngineFailed."""

    async def close(self) -> None:
        """Ends the engine's processes, also of one that is only starting. May be called again."""
