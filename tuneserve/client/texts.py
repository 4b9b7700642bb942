"""The calls about given texts: labels, entities, ranking and embeddings."""

from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypedDict, Unpack

from tuneserve.client import answers, results
from tuneserve.client.call import Call, Requests
from tuneserve.client.results import Results
from tuneserve.v1 import classification_pb2, common_pb2, embedding_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub

Text = str | tuple[str, str]  # or a pair of texts that is classified together
# A text that is too long is refused, truncated at its end, or classified in overlapping windows.
Truncation = Literal["reject", "end", "windows"]


class ClassifyOptions(TypedDict, total=False):
    """Arguments of `classify` that hold for every text of a stream."""

    top_k: int | None
    threshold: float | None
    thresholds: Mapping[str, float] | None
    labels: Sequence[str]
    examples: Sequence[tuple[str, str]]
    instruction: str | None
    explain: bool
    max_explained_words: int | None
    raw_scores: bool
    truncation: Truncation
    window_overlap: int | None
    window_pooling: Literal["mean", "max"] | None
    priority: int | None


def classify(
    model: str,
    texts: str | Sequence[Text],
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
    """Scores labels for each text or pair of texts; a single text needs no list.

    `top_k`: only this many labels, best first. `threshold`: only labels of at least this probability, `thresholds` the
    same by label. `labels`: the labels that a generation model chooses from (zero-shot), with labelled `examples` as
    (text, label), and an `instruction` for each text. `explain`: the weight of each word, of at most
    `max_explained_words`; the model reads one more text per word. `raw_scores`: logits in place of probabilities.
    `truncation`: what happens to texts that are too long; windows share `window_overlap` tokens, and their outputs are
    combined by `window_pooling`. `priority`: lower goes first. `timeout`: seconds for the call, its retries included.
    Raises CallError.
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


def classify_stream(
    model: str,
    texts: Iterable[Text] | AsyncIterable[Text],
    *,
    timeout: float | None = None,
    **options: Unpack[ClassifyOptions],
) -> Call[results.StreamedClassification]:
    """Classifies texts, or pairs, on one stream, for pipelines that have many.

        for answer in client.classify_stream("sentiment", lines):
            print(answer.id, answer.result.best.label)

    Answers arrive as they are ready, in any order: `id` is the text's place among `texts`, from 0. A text that fails
    has an `error` in its answer, and the others continue. Texts are read as fast as the server takes them: by `Client`
    in a thread of its own, by `AsyncClient` in the event loop, also from async iterables. An exception of `texts` is
    raised after the answers to the texts before it. Leaving the loop early ends the call. `timeout`: seconds for
    the whole call; no limit if None. The other arguments are those of `classify`. Iterating raises CallError; after
    the first answer there are no retries.
    """
    common: Any = classify(model, (), **options).request

    def request(place: int, text: Text) -> classification_pb2.ClassifyStreamRequest:
        made = classification_pb2.ClassifyStreamRequest(id=place, request=common)
        made.request.inputs.append(_input(text))
        return made

    sent = Requests(texts, request)
    return Call(ClassificationServiceStub, "ClassifyStream", sent, answers.streamed, timeout, is_endless=True)


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
    """Finds the entities of each text, such as names and places; a single text needs no list.

    `aggregation`: how the labels of a word's tokens become the word's label: `simple` keeps each token's label, `first`
    takes the first token's, `average` the one with the highest mean, `max` the most confident token's. The other
    arguments are as in `classify`. Offsets count characters. Raises CallError.
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

    `top_k`: only this many. `label`: the label to rank by, if the model has several. The other arguments are as in
    `classify`. Raises CallError.
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
    prompt_name: str | None = None,
    normalize: bool = True,
    dimensions: int | None = None,
    truncation: Literal["reject", "end"] = "reject",
    priority: int | None = None,
    timeout: float | None = None,
) -> Call[Results[results.Embedding]]:
    """Turns each text into a vector; a single text needs no list.

    `prompt_name`: a prompt of the model, such as "query" or "passage", which is put before each text. `normalize`:
    scale to length 1, so that a dot product is the cosine. `dimensions`: only this many first dimensions, for models
    trained for it. The other arguments are as in `classify`. Raises CallError.
    """
    request = embedding_pb2.EmbedRequest(
        model=model,
        texts=_several(texts),
        prompt_name=prompt_name,
        normalize=normalize,
        dimensions=dimensions,
        truncation=_truncation(truncation),
        priority=priority,
    )
    return Call(EmbeddingServiceStub, "Embed", request, answers.embeddings, timeout)


def _several(texts: Any) -> Any:
    return [texts] if isinstance(texts, str) else texts


def _input(text: Text) -> classification_pb2.ClassifyInput:
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
