"""Checks the fields of classification's and embedding's requests, and returns what they ask for.

A wrong field is added to the call's Violations; the value that is returned for it is never used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuneserve.server.api.checks import BLANK, check_count, check_enum, check_unset, listed
from tuneserve.server.call.errors import Violations
from tuneserve.server.text import spans, windows
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


def prompt(wrong: Violations, request: embedding_pb2.EmbedRequest, prompts: Mapping[str, str]) -> str:
    """Returns what is put before each text."""
    name = request.prompt_name
    if not request.HasField("prompt_name") or name in prompts:
        return prompts[name] if name else ""
    known = f"prompts: {listed(sorted(prompts))}" if prompts else "it has none"
    wrong.add("prompt_name", f"is not a prompt of the model; {known}")
    return ""


def dimensions(wrong: Violations, request: embedding_pb2.EmbedRequest) -> int | None:
    """Returns how many dimensions to return. That the model has so many is not known before its answer."""
    if not request.HasField("dimensions"):
        return None
    if request.dimensions < 1:
        wrong.add("dimensions", f"is {request.dimensions}; allowed: 1 or more, or unset for all")
    return request.dimensions


def check_top_k(wrong: Violations, request: pb.ClassifyRequest | pb.RankRequest) -> None:
    """Refuses a `top_k` below 1."""
    if request.HasField("top_k") and request.top_k < 1:
        wrong.add("top_k", f"is {request.top_k}; allowed: 1 or more, or unset for all")
