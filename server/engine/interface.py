"""The interface between the server and the engine that runs a model: a few methods and their data types.

Above it are gRPC, text and tokenizers; below it are token ids and numbers. `vllm_engine.py` has the real engine, on
vLLM; the tests have a small fake, so that everything above runs without a model.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry


class EngineFailed(Exception):
    """The engine died or gave no answer; the request itself was fine.

    `told` is the message for callers. The engine's own error text may repeat the prompt.
    """

    told = "the model's engine failed"


class RequestRefused(Exception):
    """The engine refused the request. `field` is the sampling field, if the engine named one.

    The engine's own error text is not in the message: it may repeat the prompt.
    """

    def __init__(self, field: str = "") -> None:
        super().__init__(field)
        self.field = field


PoolTask: TypeAlias = Literal["classify", "token_classify", "embed"]


@dataclass(frozen=True)
class Ticket:
    """The metadata of a request to the engine."""

    request_id: str  # unique among all requests of the engine
    priority: int = 0  # lower goes first
    adapter: str = ""  # name given to `load_adapter`; the model itself when empty
    salt: str = ""  # requests with different salts share no prefix cache
    trace: Mapping[str, str] = field(default_factory=dict)  # W3C trace headers
    # Called with the number of tokens that a request wrote before it ended early, and that are in no item.
    lost: Callable[[int], object] = lambda tokens: None
    # Called when the prompt has been read, if that is known before the first item.
    read: Callable[[], object] | None = None


@dataclass(frozen=True)
class Encoded:
    """One tokenized input, including special tokens."""

    token_ids: Sequence[int]
    # Position of the second text's first token, for models with token type ids.
    pair_start: int | None = None


@dataclass(frozen=True)
class StructuredOutput:
    """A constraint on the generated text. `value` is JSON text, a pattern, a grammar, or the texts to choose from."""

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
    n: int = 1  # completions; the engine is asked for each of them
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
    """A possible token at a position; `logprob` is a natural logarithm."""

    token_id: int
    logprob: float
    text: str


@dataclass(frozen=True)
class Logprob:
    """The token at a position, and the most likely alternatives, best first."""

    token_id: int
    logprob: float
    alternatives: Sequence[Alternative]


@dataclass(frozen=True)
class ToolCall:
    """A tool call that a model asks for, or the new part of one: id and name come first.

    `arguments` is JSON text, or a part of it.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Delta:
    """New output of one of a call's completions. `finish` is set on the last one.

    From the engine, everything is in `text`: parsers separate reasoning and tool calls later.
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
    """The parts of a text that a model wrote, or the new parts."""

    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ToolCall] = ()


class AnswerParser(Protocol):
    """Parses one completion, whole or piece by piece.

    It reads text that a model wrote, possibly at a caller's wish: it may take long, and raise anything.
    """

    def whole(self, text: str, token_ids: Sequence[int]) -> Parts:
        """Returns the parts of a finished completion."""

    def more(self, text: str, token_ids: Sequence[int], finished: bool) -> Parts:
        """Returns the new parts for the next piece of a completion; `finished` is set for the last piece."""


@dataclass(frozen=True)
class Parsing:
    """How the completions of one chat are parsed."""

    parser: Callable[[], AnswerParser]  # makes a parser for each completion
    special_tokens: bool  # whether the text must include special tokens


class Parsers(Protocol):
    """The parsers of one model's answers."""

    def chat(
        self, tools: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any], token_ids: Sequence[int]
    ) -> Parsing | None:
        """Returns how answers to a chat are parsed, given its tools, the arguments of its template and the ids of the
        rendered prompt; None if there is nothing to parse.
        """


class Engine(Protocol):
    """An engine that runs one model. All methods may be called concurrently; cancelling one frees its resources.

    An engine must be closed, even if it was never started, or its start failed or was cancelled.
    """

    # Known once the engine has started.
    max_length: int  # tokens, prompt and completion together
    max_num_seqs: int  # requests in one step
    vocab_size: int
    long_prompt: int  # tokens; it reads longer prompts in many steps
    long_prompts: int  # so many of those leave room for other requests in each step
    cache_block: int  # tokens; a cached prompt is read again from its last whole block on. 0 without a cache
    registry: CollectorRegistry  # the engine's own metrics
    parsers: Parsers | None  # None unless the model's settings name parsers

    async def start(self) -> None:
        """Loads the model. May raise any exception."""

    async def pool(self, ticket: Ticket, inputs: Sequence[Encoded], task: PoolTask) -> list[NDArray[np.float32]]:
        """Returns one array for each input: logits (labels,) for classify, (tokens, labels) for token_classify; for
        embed the model's vector, not normalized.
        """

    def generate(
        self, ticket: Ticket, token_ids: Sequence[int], sampling: Sampling, stream: bool
    ) -> AsyncGenerator[Delta, None]:
        """Yields a completion's new output since the last item; one item with all output if `stream` is false."""

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Loads a LoRA adapter under a name that is never used for other content."""

    async def unload_adapter(self, name: str) -> None:
        """Unloads an adapter."""

    async def ping(self) -> None:
        """Makes a round trip through the engine's loop. Raises EngineFailed if it is dead; hangs if it hangs."""

    def cpu_seconds(self) -> Mapping[int, float]:
        """Returns the CPU time of each of the engine's processes, by process id: it grows while the engine computes or
        loads.
        """

    def kill(self) -> None:
        """Kills the engine's processes at once, even stopped or hung ones. Waiting calls raise EngineFailed."""

    async def close(self) -> None:
        """Ends the engine's processes, even while it is still starting. May be called again."""
