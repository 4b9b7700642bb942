"""What calls return. Offsets count characters, as Python's strings do: text[entity.start:entity.end] is entity.text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from tuneserve.client.errors import CallError

T = TypeVar("T")


@dataclass(frozen=True)
class Usage:
    """The tokens that a call used."""

    prompt_tokens: int  # tokens read, special tokens included
    completion_tokens: int  # tokens generated


@dataclass(frozen=True)
class Results(Generic[T]):
    """The results of one call: iterate over it, index it, or take `items`."""

    items: tuple[T, ...]  # one per input, in order; for `rank`, best first
    usage: Usage
    model_version: str  # who answered: NAME@VERSION

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> T:
        return self.items[index]


@dataclass(frozen=True)
class LabelScore:
    """A label and its score."""

    label: str
    score: float  # probability, or logit when raw scores were asked for


@dataclass(frozen=True)
class WordWeight:
    """How much a word adds to the best label's probability."""

    text: str
    start: int
    end: int
    weight: float  # -1 to 1


@dataclass(frozen=True)
class Classification:
    """The labels of one text."""

    labels: tuple[LabelScore, ...]  # highest score first
    token_count: int  # length of the text as the model saw it
    truncated: bool  # whether tokens were dropped
    windows: int  # number of windows that the text was split into; 1 if it was not split
    weights: tuple[WordWeight, ...]  # one per word, if asked for

    @property
    def best(self) -> LabelScore:
        """The label with the highest score. Raises IndexError if no label reached its threshold."""
        return self.labels[0]


@dataclass(frozen=True)
class StreamedClassification:
    """The answer to one text of a stream."""

    id: int  # the text's place among those of the stream, from 0
    results: Results[Classification] | None  # of this one text; None if it failed
    error: CallError | None  # why it failed; None if it did not

    @property
    def result(self) -> Classification:
        """The labels of the text. Raises `error`, if there is one."""
        if self.results is None:
            assert self.error is not None
            raise self.error
        return self.results[0]


@dataclass(frozen=True)
class Observation:
    """What a text was counted as."""

    topics: tuple[LabelScore, ...]  # one; of a multi-label model any number, highest score first
    sentiment: LabelScore
    truncated: bool  # whether tokens were dropped for one of the models
    usage: Usage
    topic_model_version: str  # who found the topics: NAME@VERSION
    sentiment_model_version: str


@dataclass(frozen=True)
class StreamedObservation:
    """The answer to one text of a stream."""

    id: int  # the text's place among those of the stream, from 0
    observation: Observation | None  # None if it failed
    error: CallError | None  # why it failed; None if it did not

    @property
    def result(self) -> Observation:
        """The topics and the sentiment of the text. Raises `error`, if there is one."""
        if self.observation is None:
            assert self.error is not None
            raise self.error
        return self.observation


@dataclass(frozen=True)
class Example:
    """A text that was observed."""

    text: str  # its beginning, as the models saw it
    time: datetime  # when it was counted, in UTC


@dataclass(frozen=True)
class Entity:
    """A labelled part of a text."""

    label: str
    score: float  # 0 to 1
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Entities:
    """The labelled parts of one text."""

    entities: tuple[Entity, ...]  # in the text's order, never overlapping
    token_count: int  # length of the text as the model saw it
    truncated: bool  # whether tokens were dropped

    def __iter__(self) -> Iterator[Entity]:
        return iter(self.entities)

    def __len__(self) -> int:
        return len(self.entities)


@dataclass(frozen=True)
class RankedCandidate:
    """A candidate and its score."""

    index: int  # its place among the candidates of the call
    score: float  # probability, or logit when raw scores were asked for
    text: str


@dataclass(frozen=True)
class Embedding:
    """One text as a vector."""

    values: tuple[float, ...]
    token_count: int  # length of the text as the model saw it
    truncated: bool  # whether tokens were dropped


@dataclass(frozen=True)
class Token:
    """A token of a text."""

    id: int
    start: int  # 0 for special tokens that were added
    end: int  # equal to `start` for those


@dataclass(frozen=True)
class Tokens:
    """A prompt as the model reads it."""

    tokens: tuple[Token, ...]
    text: str  # the text that was tokenized; of a chat, rendered by the template; empty for token ids
    model_version: str  # who answered: NAME@VERSION

    def __iter__(self) -> Iterator[Token]:
        return iter(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class TokenAlternative:
    """An alternative token at a position."""

    token_id: int
    logprob: float  # natural logarithm of its probability
    text: str


@dataclass(frozen=True)
class TokenLogprob:
    """The log probability of a token."""

    token_id: int
    logprob: float  # natural logarithm of its probability
    alternatives: tuple[TokenAlternative, ...]  # most likely first, as many as asked for


@dataclass(frozen=True)
class ToolCall:
    """A tool call that the model asks for. The model wrote name and arguments: check both before calling anything."""

    id: str  # the `tool_call_id` of the tool's answer
    name: str
    arguments: str  # JSON text; cut off where the completion was

    def as_message(self) -> dict[str, Any]:
        """Returns it as an entry of an assistant message's `tool_calls`. Raises ValueError if arguments are not
        JSON.
        """
        function = {"name": self.name, "arguments": json.loads(self.arguments or "{}")}
        return {"type": "function", "id": self.id, "function": function}


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    reasoning: str  # the model's reasoning before its answer, if the server separates it
    tool_calls: tuple[ToolCall, ...]
    # "stop"; "length": max_tokens or the model's length was reached; "tool_calls"; empty if not finished
    finish_reason: str
    stop_text: str  # the text of `stop` that ended it; empty if something else did
    stop_token_id: int | None  # the token of `stop_token_ids` that ended it
    logprobs: tuple[TokenLogprob, ...]  # one per token, if asked for


@dataclass(frozen=True)
class Generation:
    """All completions of one prompt."""

    completions: tuple[Completion, ...]
    usage: Usage
    model_version: str  # who answered: NAME@VERSION
    prompt_logprobs: tuple[TokenLogprob, ...]  # one per token of the prompt but the first, if asked for

    @property
    def text(self) -> str:
        """The text of the first completion; it is the only one, unless `n` is larger than 1."""
        return self.completions[0].text

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of the first completion."""
        return self.completions[0].tool_calls

    @property
    def finish_reason(self) -> str:
        """Why the first completion ended."""
        return self.completions[0].finish_reason


@dataclass(frozen=True)
class Limits:
    """Bounds of one call."""

    max_length: int  # tokens of an input; for generation, of prompt and completion together; 0 while the model loads
    max_inputs: int  # of one call
    max_queue: int  # calls that wait or run
    max_explained_words: int  # of one input


@dataclass(frozen=True)
class Model:
    """A version of a served model."""

    name: str
    version: str  # equal for equal weights
    id: str  # NAME@VERSION: reaches this version, whatever the aliases say
    task: str  # sequence-classification, token-classification, generation, embedding or ranking
    state: str  # loading, ready, draining or failed
    load_step: str  # while it is loading: waiting, starting or warming-up
    failure: str  # the reason, if it is failed
    quantization: str  # empty if not quantized
    labels: tuple[str, ...]  # empty for generation
    adapters: tuple[str, ...]  # the allowed names of `adapter`
    limits: Limits


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on a model."""

    name: str
    version: str  # equal for equal content


@dataclass(frozen=True)
class AliasTarget:
    """A version that an alias points at."""

    model: str  # NAME@VERSION
    weight: int  # its share of the calls, relative to the other targets' weights


@dataclass(frozen=True)
class Alias:
    """A name that callers use for one or several versions."""

    name: str
    targets: tuple[AliasTarget, ...]
    shadow: str  # NAME@VERSION that gets copies of the calls; empty for none
    etag: str  # identifies the alias's present state


@dataclass(frozen=True)
class Document:
    """A text for an index."""

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    readers: Sequence[str] = ()  # names and groups; everybody may read it if there are none
    reply: str | None = None  # an approved answer to what the title asks


@dataclass(frozen=True)
class Written:
    """What was written to an index."""

    written: int  # documents
    unchanged: int  # documents that were there already
    index_version: int
    usage: Usage
    model_version: str  # who made the vectors: NAME@VERSION


@dataclass(frozen=True)
class Deleted:
    """What was deleted from an index."""

    deleted: int  # documents that there were
    index_version: int


@dataclass(frozen=True)
class Passage:
    """A part of a document: its text[start:end]."""

    document_id: str
    title: str
    text: str
    start: int
    end: int
    metadata: dict[str, str]
    reply: str | None  # the document's approved answer
    score: float  # what the passages are ordered by
    dense_score: float  # cosine of query and passage
    keyword_score: float  # BM25
    ranking_score: float | None  # None without a ranking model


@dataclass(frozen=True)
class Passages(Results[Passage]):
    """The passages found, best first."""

    index_version: int
    ranking_model_version: str  # empty without a ranking model


@dataclass(frozen=True)
class Citation:
    """A part of an answer, and the part of a document that it comes from."""

    start: int  # in the answer's text
    end: int
    document_id: str
    document_start: int  # in the document's text
    document_end: int


@dataclass(frozen=True)
class Answer:
    """An answer from documents."""

    text: str
    outcome: str  # answered, reply, not-found or ungrounded; empty until the answer has ended
    citations: tuple[Citation, ...]
    citations_dropped: int  # of the generation model: their passage does not say the same
    query: str  # what was searched: the question, or what it was rewritten to
    passages: Passages  # what it is made from
    answerable: float | None  # probability that they have an answer; None without a gate
    usage: Usage
    generation_model_version: str  # who wrote the text; empty if nobody did
