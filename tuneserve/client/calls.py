"""Each call once: its arguments, what is sent for them, and how the answer is read. Nothing is sent here.

Both clients have a method for each of these functions, with the same arguments (base.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar, Unpack

from google.protobuf.message import Message

from tuneserve.client import answers, results
from tuneserve.client.results import Results
from tuneserve.client.sampling import Prompt, Sampling, prompt, sampling
from tuneserve.v1 import classification_pb2, common_pb2, embedding_pb2, generation_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

R = TypeVar("R")

STUBS = (ClassificationServiceStub, EmbeddingServiceStub, GenerationServiceStub, ModelServiceStub)

# Refuse a text that is too long, cut its end off, or classify it in overlapping windows.
Truncation = Literal["reject", "end", "windows"]


@dataclass(frozen=True)
class Call(Generic[R]):
    """What is sent, and how the answer is read."""

    stub: Any  # one of STUBS
    method: str
    request: Message
    read: Callable[[Any], R]
    timeout: float | None  # seconds; the client's own when None


def classify(
    model: str,
    texts: str | Sequence[str | tuple[str, str]],
    *,
    top_k: int | None = None,
    threshold: float | None = None,
    thresholds: Mapping[str, float] | None = None,
    labels: Sequence[str] = (),
    examples: Sequence[tuple[str, str]] = (),
    instruction: str | None = None,
    explain: bool = False,
    max_explained_words: int | None = None,
    raw_scores: bool = False,
    truncation: Truncation = "reject",
    window_overlap: int | None = None,
    window_pooling: Literal["mean", "max"] | None = None,
    priority: int | None = None,
    timeout: float | None = None,
) -> Call[Results[results.Classification]]:
    """Scores labels for each text, or pair of texts judged together; one text may stand alone.

    `top_k`: only so many labels, best first. `threshold`: only labels as probable as this, `thresholds` by label.
    `labels`: what a generation model is to choose from (zero-shot), with labelled `examples` as (text, label), and an
    `instruction` of what is asked of each text. `explain`: the weight of each word, of at most `max_explained_words`;
    one more text for the model per word. `raw_scores`: logits in place of probabilities. `truncation`: what happens to
    texts that are too long; windows share `window_overlap` tokens, and their outputs are joined by `window_pooling`.
    `priority`: lower goes first. `timeout`: seconds for the call, its retries included. Raises CallError.
    """
    request = classification_pb2.ClassifyRequest(
        model=model,
        inputs=[_input(text) for text in _several(texts)],
        top_k=top_k,
        threshold=threshold,
        thresholds=thresholds,
        labels=labels,
        examples=[classification_pb2.ClassifyExample(text=text, label=label) for text, label in examples],
        instruction=instruction,
        explain=classification_pb2.Explain(max_words=max_explained_words) if explain else None,
        raw_scores=raw_scores,
        truncation=_truncation(truncation),
        windows=_windows(window_overlap, window_pooling),
        offset_unit=common_pb2.OFFSET_UNIT_CODE_POINT,
        priority=priority,
    )
    return Call(ClassificationServiceStub, "Classify", request, answers.classifications, timeout)


def find_entities(
    model: str,
    texts: str | Sequence[str],
    *,
    aggregation: Literal["simple", "first", "average", "max"] = "simple",
    truncation: Truncation = "reject",
    window_overlap: int | None = None,
    priority: int | None = None,
    timeout: float | None = None,
) -> Call[Results[results.Entities]]:
    """Finds the labelled parts of each text: names, places and the like; one text may stand alone.

    `aggregation`: how the labels of a word's tokens become the word's: `simple` takes tokens as they are, `first` the
    first token's, `average` that of the highest mean, `max` the most confident one's. The others as in `classify`.
    Offsets count characters. Raises CallError.
    """
    request = classification_pb2.ClassifyTokensRequest(
        model=model,
        texts=_several(texts),
        aggregation=f"AGGREGATION_{aggregation.upper()}",
        offset_unit=common_pb2.OFFSET_UNIT_CODE_POINT,
        truncation=_truncation(truncation),
        windows=_windows(window_overlap, None),
        priority=priority,
    )
    return Call(ClassificationServiceStub, "ClassifyTokens", request, answers.entities, timeout)


def rank(
    model: str,
    query: str,
    candidates: str | Sequence[str],
    *,
    top_k: int | None = None,
    label: str | None = None,
    raw_scores: bool = False,
    truncation: Literal["reject", "end"] = "reject",
    priority: int | None = None,
    timeout: float | None = None,
) -> Call[Results[results.RankedCandidate]]:
    """Orders candidates by how well they fit a query, best first.

    `top_k`: only so many. `label`: whose score ranks, where the model has several. The others as in `classify`.
    Raises CallError.
    """
    texts = _several(candidates)
    request = classification_pb2.RankRequest(
        model=model,
        query=query,
        candidates=texts,
        top_k=top_k,
        label=label,
        raw_scores=raw_scores,
        truncation=_truncation(truncation),
        priority=priority,
    )
    return Call(ClassificationServiceStub, "Rank", request, partial(answers.ranked, texts), timeout)


def embed(
    model: str,
    texts: str | Sequence[str],
    *,
    normalize: bool = True,
    dimensions: int | None = None,
    truncation: Literal["reject", "end"] = "reject",
    priority: int | None = None,
    timeout: float | None = None,
) -> Call[Results[results.Embedding]]:
    """Turns each text into a vector; one text may stand alone.

    `normalize`: scaled to length 1, so that a dot product is the cosine. `dimensions`: only the first so many, for
    models trained to allow it. The others as in `classify`. Raises CallError.
    """
    request = embedding_pb2.EmbedRequest(
        model=model,
        texts=_several(texts),
        normalize=normalize,
        dimensions=dimensions,
        truncation=_truncation(truncation),
        priority=priority,
    )
    return Call(EmbeddingServiceStub, "Embed", request, answers.embeddings, timeout)


def generate(
    model: str,
    prompt: str | Sequence[int],
    *,
    adapter: str = "",
    priority: int | None = None,
    timeout: float | None = None,
    **sampling: Unpack[Sampling],
) -> Call[results.Generation]:
    """Continues a text, or token ids, and answers when all is made.

    `adapter`: the LoRA adapter to answer with. `priority`: lower goes first. `timeout`: seconds for the call, its
    retries included. The other arguments, e.g. `max_tokens` and `temperature`, are those of `Sampling` (sampling.py).
    Raises CallError.
    """
    request = _request(model, prompt, (), (), None, adapter, priority, sampling)
    return Call(GenerationServiceStub, "Generate", request, answers.generation, timeout)


def chat(
    model: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    documents: Sequence[Mapping[str, Any]] = (),
    tool_choice: str | None = None,
    adapter: str = "",
    priority: int | None = None,
    timeout: float | None = None,
    **sampling: Unpack[Sampling],
) -> Call[results.Generation]:
    """Answers a conversation, rendered by the model's own chat template, when all is made.

    `messages`: {"role": "user", "content": "Hello"} and so on. `tools` and `documents`: as the template expects them.
    `tool_choice`: "auto", "none", "required", or the name of the tool that is to be called. The others as in
    `generate`. Raises CallError; ValueError for a message with fields that there are not.
    """
    request = _request(model, messages, tools, documents, tool_choice, adapter, priority, sampling)
    return Call(GenerationServiceStub, "Generate", request, answers.generation, timeout)


def stream(
    model: str,
    prompt: Prompt,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    documents: Sequence[Mapping[str, Any]] = (),
    tool_choice: str | None = None,
    adapter: str = "",
    priority: int | None = None,
    timeout: float | None = None,
    **sampling: Unpack[Sampling],
) -> Call[results.Generation]:
    """Continues a text, token ids or a conversation, and gives its text as it is made.

        for text in (answer := client.stream("chat", "Once upon a time", max_tokens=100)):
            print(text, end="")
        print(answer.result.usage.completion_tokens)

    Leaving the loop early ends the call. The arguments are those of `chat`, but `n` and `prompt_logprobs`. Iterating
    raises CallError; after the first text, nothing is tried again.
    """
    without = ("n", "prompt_logprobs")
    request = _request(model, prompt, tools, documents, tool_choice, adapter, priority, sampling, without)
    return Call(GenerationServiceStub, "GenerateStream", request, answers.generation, timeout)


def list_models(page_token: str, timeout: float | None) -> Call[tuple[list[results.Model], str]]:
    """One page of all models."""
    request = model_pb2.ListModelsRequest(page_token=page_token)
    return Call(ModelServiceStub, "ListModels", request, answers.models, timeout)


def _request(
    model: str,
    given: Prompt,
    tools: Sequence[Mapping[str, Any]],
    documents: Sequence[Mapping[str, Any]],
    tool_choice: str | None,
    adapter: str,
    priority: int | None,
    options: Mapping[str, Any],
    without: Sequence[str] = (),
) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(
        model=model,
        prompt=prompt(given, tools, documents, tool_choice),
        sampling=sampling(options, without),
        adapter=adapter,
        priority=priority,
    )


def _several(texts: Any) -> Any:
    return [texts] if isinstance(texts, str) else texts


def _input(text: str | tuple[str, str]) -> classification_pb2.ClassifyInput:
    if isinstance(text, str):
        return classification_pb2.ClassifyInput(text=text)
    first, second = text
    return classification_pb2.ClassifyInput(text=first, text_pair=second)


def _truncation(name: str) -> str:
    return f"TRUNCATION_{name.upper()}"


def _windows(overlap: int | None, pooling: str | None) -> classification_pb2.Windows | None:
    if overlap is None and pooling is None:
        return None
    return classification_pb2.Windows(overlap=overlap, pooling=f"WINDOW_POOLING_{pooling.upper()}" if pooling else None)
