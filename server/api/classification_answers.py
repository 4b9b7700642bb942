"""Turns the outputs of classifiers and embedding models into answers: scores, labels, spans and vectors.

What takes more than some milliseconds is done in steps, between which other calls get their turn.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tuneserve.server.api.classification_messages import Shown
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.text import spans
from tuneserve.server.text.tokenizer import Tokens
from tuneserve.server.turns import in_turns
from tuneserve.v1 import checkpoint_pb2, embedding_pb2
from tuneserve.v1 import classification_pb2 as pb

# Scores computed at a time.
_SCORES = 1 << 16
# A label of a multi-label model is predicted from this probability on, as in evaluations.
LIKELY = 0.5


class Result(NamedTuple):
    """The model's raw outputs for one text, and how it read the text."""

    raw: NDArray[np.float32]  # (labels,)
    length: int  # tokens
    truncated: bool = False
    windows: int = 1


def probabilities(
    logits: NDArray[np.float32], problem: checkpoint_pb2.ProblemType, temperature: float = 1.0
) -> NDArray[np.float32]:
    """Returns the softmax, over the last axis, of the logits divided by the temperature; for multi-label the sigmoid of
    each; for regression the outputs unchanged. Computed in float64.
    """
    _check_numbers(logits)
    scores = logits.astype(np.float64)
    if problem != checkpoint_pb2.PROBLEM_TYPE_REGRESSION:
        scores /= temperature
    if problem == checkpoint_pb2.PROBLEM_TYPE_MULTI_LABEL:
        # A sigmoid whose exponentials do not overflow.
        scores = np.exp(np.minimum(scores, 0)) / (1 + np.exp(-np.abs(scores)))
    elif problem != checkpoint_pb2.PROBLEM_TYPE_REGRESSION:
        # The same as SciPy's softmax, in a fifth of the time.
        scores = np.exp(scores - np.maximum.reduce(scores, axis=-1, keepdims=True))
        scores /= np.add.reduce(scores, axis=-1, keepdims=True)
    return np.asarray(scores, dtype=np.float32)


def token_probabilities(logits: NDArray[np.float32]) -> Generator[None, None, NDArray[np.float32]]:
    """Returns the probabilities of tokens' labels, in steps of some milliseconds."""
    scores = np.empty(logits.shape, np.float32)
    few = max(1, _SCORES // logits.shape[-1])
    for start in range(0, len(logits), few):
        some = slice(start, start + few)
        scores[some] = probabilities(logits[some], checkpoint_pb2.PROBLEM_TYPE_SINGLE_LABEL)
        yield
    return scores


def all_scores(results: Sequence[Result], shown: Shown) -> NDArray[np.float32]:
    """Returns (results, labels), see `probabilities`. All at once: sixty results cost no more than one."""
    return probabilities(np.array([result.raw for result in results]), shown.problem, shown.temperature)


async def add_counted(
    answer: pb.ClassifyResponse, results: Sequence[Result], shown: Shown, model: str, *, named: bool = True
) -> NDArray[np.float32]:
    """As `add`, and counts the best labels in the metrics, unless they are not `named` by the model: those that calls
    bring have no bound. Returns the scores, (results, labels).
    """
    scores, best = await add(answer, results, shown)
    await count(model, len(results), best if named else [], per_label(scores, shown))
    return scores


async def add(
    answer: pb.ClassifyResponse, results: Sequence[Result], shown: Shown
) -> tuple[NDArray[np.float32], Sequence[tuple[str, float]]]:
    """Adds the labels of each input to an answer, and notes the best ones for the log line. Returns the scores,
    (results, labels), and the best label of each input with its probability.
    """
    scores = await scores_of(results, shown)
    best = [one async for one in in_turns(add_classifications(answer, results, scores, shown))]
    current().note("output", *(label for label, _ in best))
    return scores, best


async def scores_of(results: Sequence[Result], shown: Shown) -> NDArray[np.float32]:
    """Returns the same, but computes some results at a time."""
    few = _few(shown)
    if len(results) <= few:
        return all_scores(results, shown)
    starts = in_turns(range(0, len(results), few))
    return np.concatenate([all_scores(results[start : start + few], shown) async for start in starts])


def add_classifications(
    answer: pb.ClassifyResponse, results: Sequence[Result], scores: NDArray[np.float32], shown: Shown
) -> Iterator[tuple[str, float]]:
    """Adds the labels of each input to an answer, best first, and yields each input's best label with its probability.
    Equal scores stay in the labels' order. `scores` is (results, labels).
    """
    few = _few(shown)
    for start in range(0, len(results), few):
        yield from _add_some(answer, results[start : start + few], scores[start : start + few], shown)


def _add_some(
    answer: pb.ClassifyResponse, results: Sequence[Result], scores: NDArray[np.float32], shown: Shown
) -> Iterator[tuple[str, float]]:
    order = (-scores).argsort(axis=-1, kind="stable")
    enough = None if shown.least is None else (scores >= np.asarray(shown.least, dtype=np.float32)).tolist()
    values = np.array([result.raw for result in results]) if shown.raw else scores
    # Converted to Python numbers all at once: converting NumPy numbers one by one takes longer than using them.
    rows = zip(results, order.tolist(), scores.tolist(), values.tolist(), strict=True)
    for index, (result, best, row, value) in enumerate(rows):
        kept = best if enough is None else [label for label in best if enough[index][label]]
        # Added in place: assigning a message would copy it.
        one = answer.results.add(token_count=result.length, truncated=result.truncated, windows=result.windows)
        for i in kept[: shown.top_k]:
            one.labels.add(label=shown.labels[i], score=value[i])
        yield shown.labels[best[0]], row[best[0]]


def _few(shown: Shown) -> int:
    return max(1, _SCORES // len(shown.labels))


def add_spans(
    answer: pb.ClassifyTokensResponse, text: str, found: Sequence[spans.Span], unit: spans.Unit, tokens: Tokens
) -> Iterator[None]:
    """Adds the spans of one text to an answer, with offsets in the caller's unit; in steps of some milliseconds."""
    # Added in place: assigning a message would copy it.
    result = answer.results.add(token_count=tokens.length, truncated=tokens.truncated)
    at = spans.positions(text, unit)
    yield
    for first in range(0, len(found), spans.STEP):
        for label, score, start, end in found[first : first + spans.STEP]:
            result.spans.add(label=label, score=score, start=at[start], end=at[end], text=text[start:end])
        yield


def embedding(
    vector: NDArray[np.float32], tokens: Tokens, dimensions: int | None, normalize: bool
) -> embedding_pb2.Embedding:
    """Returns the first dimensions of a vector, scaled to length 1 unless it is zero. Raises InvalidInput for more
    dimensions than it has.
    """
    _check_numbers(vector)
    if dimensions is not None and dimensions > len(vector):
        raise InvalidInput("dimensions", f"is {dimensions}; allowed: 1 to {len(vector)}")
    kept = vector[:dimensions].astype(np.float64)
    if normalize and (length := np.linalg.norm(kept)):
        kept = kept / length
    return embedding_pb2.Embedding(values=kept, token_count=tokens.length, truncated=tokens.truncated)


def _check_numbers(values: NDArray[np.floating[Any]]) -> None:
    # The model overflowed: scores made of its outputs would look like an answer.
    if not np.logical_and.reduce(np.isfinite(values), axis=None):
        raise ArithmeticError("the model's outputs contain NaN or infinity")


def per_label(scores: NDArray[np.float32], shown: Shown) -> Mapping[str, int] | None:
    """Returns how many texts have each label, for a multi-label model; None for others. `scores` is (texts, labels)."""
    if shown.problem != checkpoint_pb2.PROBLEM_TYPE_MULTI_LABEL:
        return None
    numbers = np.count_nonzero(scores >= LIKELY, axis=0).tolist()
    return {label: number for label, number in zip(shown.labels, numbers, strict=True) if number}


async def count(
    model: str, texts: int, predictions: Iterable[tuple[str, float]], per_label: Mapping[str, int] | None = None
) -> None:
    """Counts a call's texts, and its predictions with their probabilities, in the metrics. `per_label` has the count of
    each label where a text may have any number of them: `predictions` are the best ones then.
    """
    metrics = current().metrics
    metrics.texts.labels(model).inc(texts)
    counts, confidence = Counter[str](), metrics.confidence.labels(model)
    async for label, score in in_turns(predictions):
        counts[label] += 1
        # Regression outputs outside 0 to 1 are not probabilities and are left out of the histogram.
        if 0 <= score <= 1:
            confidence.observe(score)
    for label, number in (counts if per_label is None else per_label).items():
        metrics.predictions.labels(model, label).inc(number)
