"""Converts messages of classification and embedding to the engine's inputs, and outputs back. Checks all their fields.

What is wrong with a request's fields is added to the call's Violations; what is returned then is never used. Knows the
protos and the engine's interface; does no I/O.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tuneserve.server.api.checks import BLANK, check_count, check_enum, check_unset, listed
from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.text import spans, windows
from tuneserve.server.text.tokenizer import Tokens
from tuneserve.v1 import checkpoint_pb2, common_pb2, embedding_pb2
from tuneserve.v1 import classification_pb2 as pb

AGGREGATIONS: dict[int, spans.Aggregation] = {
    pb.AGGREGATION_UNSPECIFIED: "simple",
    pb.AGGREGATION_SIMPLE: "simple",
    pb.AGGREGATION_FIRST: "first",
    pb.AGGREGATION_AVERAGE: "average",
    pb.AGGREGATION_MAX: "max",
}
UNITS: dict[int, spans.Unit] = {
    common_pb2.OFFSET_UNIT_UNSPECIFIED: "code_point",
    common_pb2.OFFSET_UNIT_CODE_POINT: "code_point",
    common_pb2.OFFSET_UNIT_UTF8_BYTE: "utf8",
    common_pb2.OFFSET_UNIT_UTF16: "utf16",
}
POOLINGS: dict[int, windows.Pooling] = {
    pb.WINDOW_POOLING_UNSPECIFIED: "mean",
    pb.WINDOW_POOLING_MEAN: "mean",
    pb.WINDOW_POOLING_MAX: "max",
}
_TRUNCATIONS = frozenset(common_pb2.Truncation.values())
_NO_WINDOWS = "is TRUNCATION_WINDOWS, which is not for this call; use TRUNCATION_REJECT or TRUNCATION_END"


@dataclass(frozen=True)
class LongTexts:
    """What to do with texts that are too long: reject them, truncate their end, or split them into windows."""

    truncate: bool = False
    overlap: int | None = None  # tokens that windows share; None for no windows
    pooling: windows.Pooling = "mean"


@dataclass(frozen=True)
class Shown:
    """Which labels of a result are returned, and how."""

    labels: Sequence[str]
    problem: checkpoint_pb2.ProblemType
    top_k: int | None = None
    raw: bool = False
    least: Sequence[float] | None = None  # lowest probability shown, by label
    temperature: float = 1.0

    def width(self, beside: int) -> int:
        """Returns the approximate bytes of one result, with `beside` bytes for each label in addition to its name."""
        shown = len(self.labels) if self.top_k is None else min(self.top_k, len(self.labels))
        return shown * (beside + sum(map(len, self.labels)) // len(self.labels))


class Result(NamedTuple):
    """The model's raw outputs for one text, and how it read the text."""

    raw: NDArray[np.float32]  # (labels,)
    length: int  # tokens
    truncated: bool = False
    windows: int = 1


def pairs(request: pb.ClassifyRequest) -> list[str | tuple[str, str]]:
    """Returns the texts of a Classify call; a tuple if there is a second text."""
    return [(one.text, one.text_pair) if one.HasField("text_pair") else one.text for one in request.inputs]


def checked_pairs(wrong: Violations, request: pb.ClassifyRequest, max_inputs: int) -> list[str | tuple[str, str]]:
    """Returns the same, checked."""
    if not check_count(wrong, "inputs", len(request.inputs), max_inputs):
        return []
    found = pairs(request)
    for index, one in enumerate(found):
        first, second = (one, None) if isinstance(one, str) else one
        if not first.strip():
            wrong.add(f"inputs[{index}].text", BLANK)
        if second is not None and not second.strip():
            wrong.add(f"inputs[{index}].text_pair", BLANK)
    return found


def check_no_pairs(wrong: Violations, request: pb.ClassifyRequest, max_inputs: int, description: str) -> None:
    """Refuses second texts."""
    for index, one in enumerate(request.inputs[:max_inputs]):
        if one.HasField("text_pair"):
            wrong.add(f"inputs[{index}].text_pair", description)


def texts(wrong: Violations, request: pb.ClassifyTokensRequest, max_inputs: int) -> list[str]:
    """Returns the checked texts of a ClassifyTokens call."""
    found = plain_texts(wrong, "texts", request.texts, max_inputs)
    check_enum(wrong, "aggregation", request.aggregation, AGGREGATIONS)
    check_enum(wrong, "offset_unit", request.offset_unit, UNITS)
    return found


def plain_texts(wrong: Violations, field: str, given: Sequence[str], max_inputs: int) -> list[str]:
    """Returns the checked texts of a field."""
    if not check_count(wrong, field, len(given), max_inputs):
        return []
    found = list(given)
    for index, text in enumerate(found):
        if not text.strip():
            wrong.add(f"{field}[{index}]", BLANK)
    return found


def long_texts(
    wrong: Violations, request: pb.ClassifyRequest | pb.ClassifyTokensRequest, max_length: int, max_inputs: int
) -> LongTexts:
    """Returns what to do with texts over `max_length` tokens."""
    truncate = truncation(wrong, request.truncation)
    if request.truncation != common_pb2.TRUNCATION_WINDOWS:
        if request.HasField("windows"):
            wrong.add("windows", "is set; only TRUNCATION_WINDOWS makes windows")
        return LongTexts(truncate)
    if isinstance(request, pb.ClassifyRequest):
        check_no_pairs(wrong, request, max_inputs, "is not for TRUNCATION_WINDOWS")
    check_enum(wrong, "windows.pooling", request.windows.pooling, POOLINGS)
    overlap = request.windows.overlap if request.windows.HasField("overlap") else max_length // 4
    if not 0 <= overlap <= max_length // 2:
        wrong.add("windows.overlap", f"is {overlap}; allowed: 0 to {max_length // 2}, half of the length")
    return LongTexts(overlap=overlap, pooling=POOLINGS.get(request.windows.pooling, "mean"))


def only_truncation(wrong: Violations, request: pb.ClassifyRequest) -> LongTexts:
    """Returns the same for a generation model, which makes no windows."""
    check_unset(wrong, request, ["windows"], "is not for generation models")
    return LongTexts(truncation(wrong, request.truncation, windows=False))


def truncation(wrong: Violations, value: common_pb2.Truncation, windows: bool = True) -> bool:
    """Returns whether texts that are too long are truncated."""
    check_enum(wrong, "truncation", value, _TRUNCATIONS)
    if value == common_pb2.TRUNCATION_WINDOWS and not windows:
        wrong.add("truncation", _NO_WINDOWS)
    return value == common_pb2.TRUNCATION_END


def shown(
    wrong: Violations,
    request: pb.ClassifyRequest,
    labels: Sequence[str],
    problem: checkpoint_pb2.ProblemType,
    temperature: float = 1.0,
) -> Shown:
    """Returns how results are shown, for these labels of a model or a call."""
    check_top_k(wrong, request)
    check_enum(wrong, "offset_unit", request.offset_unit, UNITS)
    # `not a <= b` also refuses NaN, which compares false to everything.
    if not 0 <= request.threshold <= 1:
        wrong.add("threshold", f"is {request.threshold}; allowed: 0 to 1")
    given = dict(request.thresholds)
    if given:
        _check_thresholds(wrong, request, given, labels)
    least = [given.get(label, request.threshold) for label in labels]
    if problem == checkpoint_pb2.PROBLEM_TYPE_REGRESSION:
        numbers = "is for probabilities; this model is a regression, whose outputs are numbers"
        if any(least):
            wrong.add("threshold", numbers)
        check_unset(wrong, request, ["explain"], numbers)
    top_k = request.top_k if request.HasField("top_k") else None
    return Shown(labels, problem, top_k, request.raw_scores, least if any(least) else None, temperature)


def _check_thresholds(
    wrong: Violations, request: pb.ClassifyRequest, given: Mapping[str, float], labels: Sequence[str]
) -> None:
    known = frozenset(labels)
    # The caller's own labels are not repeated.
    what = "is not among the labels" if request.labels else f"is not a label of the model; labels: {listed(labels)}"
    for name, value in given.items():
        if name not in known:
            wrong.add(f"thresholds[{name[:64]}]", what)
        elif not 0 <= value <= 1:
            wrong.add(f"thresholds[{name}]", f"is {value}; allowed: 0 to 1")


def problem_of(manifest: checkpoint_pb2.Checkpoint) -> checkpoint_pb2.ProblemType:
    """Returns how a sequence classifier's outputs become scores. A single output is a binary label, unless the model is
    a regression.
    """
    if len(manifest.labels) == 1 and manifest.problem_type != checkpoint_pb2.PROBLEM_TYPE_REGRESSION:
        return checkpoint_pb2.PROBLEM_TYPE_MULTI_LABEL
    return manifest.problem_type


def rank_label(wrong: Violations, request: pb.RankRequest, labels: Sequence[str]) -> int:
    """Returns the index of the label whose score ranks the candidates."""
    check_top_k(wrong, request)
    if request.HasField("label"):
        if request.label in labels:
            return list(labels).index(request.label)
        wrong.add("label", f"is not a label of the model; labels: {listed(labels)}")
    elif len(labels) != 1:
        wrong.add("label", f"is unset, and the model has {len(labels)}: {listed(labels)}")
    return 0


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
        scores = expit(scores)
    elif problem != checkpoint_pb2.PROBLEM_TYPE_REGRESSION:
        # The same as SciPy's softmax, in a fifth of the time.
        scores = np.exp(scores - np.maximum.reduce(scores, axis=-1, keepdims=True))
        scores /= np.add.reduce(scores, axis=-1, keepdims=True)
    return np.asarray(scores, dtype=np.float32)


def all_scores(results: Sequence[Result], shown: Shown) -> NDArray[np.float32]:
    """Returns (results, labels), see `probabilities`. All at once: sixty results cost no more than one."""
    return probabilities(np.array([result.raw for result in results]), shown.problem, shown.temperature)


def add_classifications(
    answer: pb.ClassifyResponse, results: Sequence[Result], scores: NDArray[np.float32], shown: Shown
) -> Iterator[tuple[str, float]]:
    """Adds the labels of each input to an answer, best first, and yields each input's best label with its probability.
    Equal scores stay in the labels' order. `scores` is (results, labels).
    """
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


def dimensions(wrong: Violations, request: embedding_pb2.EmbedRequest) -> int | None:
    """Returns how many dimensions to return. That the model has so many is not known before its answer."""
    if not request.HasField("dimensions"):
        return None
    if request.dimensions < 1:
        wrong.add("dimensions", f"is {request.dimensions}; allowed: 1 or more, or unset for all")
    return request.dimensions


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


def check_top_k(wrong: Violations, request: pb.ClassifyRequest | pb.RankRequest) -> None:
    """Refuses a `top_k` below 1."""
    if request.HasField("top_k") and request.top_k < 1:
        wrong.add("top_k", f"is {request.top_k}; allowed: 1 or more, or unset for all")
