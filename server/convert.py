"""Messages to what the engine takes, and back. Every check of a request's fields is here.

Raises errors.InvalidInput with the field's path. Knows the protos and the seam; does no I/O.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from tuneserve.server import spans
from tuneserve.server.errors import InvalidInput
from tuneserve.server.seam import Delta, Logprob, Sampling
from tuneserve.server.tokenizer import Tokens
from tuneserve.v1 import checkpoint_pb2, generation_pb2
from tuneserve.v1 import classification_pb2 as pb

AGGREGATIONS: dict[int, spans.Aggregation] = {
    pb.AGGREGATION_UNSPECIFIED: "simple",
    pb.AGGREGATION_SIMPLE: "simple",
    pb.AGGREGATION_FIRST: "first",
    pb.AGGREGATION_AVERAGE: "average",
    pb.AGGREGATION_MAX: "max",
}
UNITS: dict[int, spans.Unit] = {
    pb.OFFSET_UNIT_UNSPECIFIED: "code_point",
    pb.OFFSET_UNIT_CODE_POINT: "code_point",
    pb.OFFSET_UNIT_UTF8_BYTE: "utf8",
    pb.OFFSET_UNIT_UTF16: "utf16",
}
_FINISH = {
    None: generation_pb2.FINISH_REASON_UNSPECIFIED,
    "stop": generation_pb2.FINISH_REASON_STOP,
    "length": generation_pb2.FINISH_REASON_LENGTH,
}
# vLLM's own bounds, checked here so that the error can name the field.
_MAX_LOGPROBS = 20
_MAX_N = 128


def pairs(request: pb.ClassifyRequest, max_inputs: int) -> list[str | tuple[str, str]]:
    """Returns the checked texts of a Classify call; a tuple where there is a second text."""
    _check_count("inputs", len(request.inputs), max_inputs)
    if request.HasField("top_k") and request.top_k < 1:
        raise InvalidInput("top_k", "is 0; allowed: 1 or more, or unset for all labels")
    _check_enum("truncation", request.truncation, pb.Truncation.values())
    texts: list[str | tuple[str, str]] = []
    for index, one in enumerate(request.inputs):
        _check_text(f"inputs[{index}].text", one.text)
        if one.HasField("text_pair"):
            _check_text(f"inputs[{index}].text_pair", one.text_pair)
            texts.append((one.text, one.text_pair))
        else:
            texts.append(one.text)
    return texts


def texts(request: pb.ClassifyTokensRequest, max_inputs: int) -> list[str]:
    """Returns the checked texts of a ClassifyTokens call."""
    _check_count("texts", len(request.texts), max_inputs)
    _check_enum("truncation", request.truncation, pb.Truncation.values())
    _check_enum("aggregation", request.aggregation, AGGREGATIONS)
    _check_enum("offset_unit", request.offset_unit, UNITS)
    for index, text in enumerate(request.texts):
        _check_text(f"texts[{index}]", text)
    return list(request.texts)


def check_lengths(field: str, tokens: Sequence[Tokens], max_length: int) -> None:
    """Raises InvalidInput for the first input of more than `max_length` tokens. `field` has a {} for the index."""
    for index, one in enumerate(tokens):
        if one.length > max_length:
            raise InvalidInput(
                field.format(index),
                f"has {one.length} tokens, the model takes {max_length}; shorten it or set TRUNCATION_END",
            )


def probabilities(logits: NDArray[np.float32], problem: checkpoint_pb2.ProblemType) -> NDArray[np.float32]:
    """Returns softmax over the last axis, or sigmoid of each for multi-label. Computed in float64."""
    wide = logits.astype(np.float64)
    scores = expit(wide) if problem == checkpoint_pb2.PROBLEM_TYPE_MULTI_LABEL else softmax(wide, axis=-1)
    return np.asarray(scores, dtype=np.float32)


def classification(
    scores: NDArray[np.float32], labels: Sequence[str], top_k: int | None, tokens: Tokens
) -> pb.Classification:
    """Returns the best `top_k` labels of one input; equal scores stay in the labels' order."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    return pb.Classification(
        labels=[pb.LabelScore(label=labels[i], score=float(scores[i])) for i in best],
        token_count=tokens.length,
        truncated=tokens.truncated,
    )


def token_classification(
    text: str, found: Sequence[spans.Span], unit: spans.Unit, tokens: Tokens
) -> pb.TokenClassification:
    """Returns the spans of one text with offsets in the caller's unit."""
    converted = spans.convert(text, found, unit)
    return pb.TokenClassification(
        spans=[
            pb.Span(
                label=span.label,
                score=span.score,
                start=span.start,
                end=span.end,
                text=text[original.start : original.end],
            )
            for span, original in zip(converted, found, strict=True)
        ],
        token_count=tokens.length,
        truncated=tokens.truncated,
    )


def messages(chat: generation_pb2.Chat) -> list[dict[str, str]]:
    """Returns the checked turns of a conversation."""
    if not chat.messages:
        raise InvalidInput("prompt.chat.messages", "is empty; at least one message is needed")
    for index, message in enumerate(chat.messages):
        if not message.role:
            raise InvalidInput(f"prompt.chat.messages[{index}].role", "is empty; for example user")
    return [{"role": message.role, "content": message.content} for message in chat.messages]


def token_ids(prompt: generation_pb2.TokenIds, vocab_size: int) -> list[int]:
    """Returns checked token ids."""
    if not prompt.ids:
        raise InvalidInput("prompt.token_ids.ids", "is empty; at least one token is needed")
    for index, id_ in enumerate(prompt.ids):
        if id_ >= vocab_size:
            raise InvalidInput(f"prompt.token_ids.ids[{index}]", f"is {id_}; allowed: 0 to {vocab_size - 1}")
    return list(prompt.ids)


def sampling(
    params: generation_pb2.SamplingParams, prompt_length: int, max_length: int, vocab_size: int, stream: bool
) -> Sampling:
    """Returns checked sampling parameters for a prompt of `prompt_length` tokens."""
    room = max_length - prompt_length
    if room < 1:
        raise InvalidInput(
            "prompt",
            f"has {prompt_length} tokens, the model takes {max_length} with at least one more to make",
        )
    fields = {field.name: value for field, value in params.ListFields()}
    _check_sampling(params, fields, vocab_size)
    if stream and "prompt_logprobs" in fields:
        raise InvalidInput("sampling.prompt_logprobs", "is not for streams; use Generate")
    max_tokens = min(fields.get("max_tokens", room), room)
    if params.min_tokens > max_tokens:
        raise InvalidInput("sampling.min_tokens", f"is {params.min_tokens}; allowed: at most {max_tokens} here")
    return Sampling(**{**fields, "max_tokens": max_tokens})


def _check_sampling(params: generation_pb2.SamplingParams, fields: dict[str, object], vocab_size: int) -> None:
    def check(name: str, ok: bool, allowed: str) -> None:
        if name in fields and not ok:
            raise InvalidInput(f"sampling.{name}", f"is {fields[name]}; allowed: {allowed}")

    # `not a < b` also refuses NaN, which compares false to everything.
    check("max_tokens", params.max_tokens >= 1, "1 or more")
    check("temperature", 0 <= params.temperature < math.inf, "0 or more")
    check("top_p", 0 < params.top_p <= 1, "over 0, at most 1")
    check("min_p", 0 <= params.min_p <= 1, "0 to 1")
    check("presence_penalty", -2 <= params.presence_penalty <= 2, "-2 to 2")
    check("frequency_penalty", -2 <= params.frequency_penalty <= 2, "-2 to 2")
    check("repetition_penalty", 0 < params.repetition_penalty < math.inf, "over 0")
    check("top_k", params.top_k <= vocab_size, f"0 to {vocab_size}")
    check("seed", params.seed < 1 << 63, "0 to 2^63 - 1")
    check("n", 1 <= params.n <= _MAX_N, f"1 to {_MAX_N}")
    check("logprobs", params.logprobs <= _MAX_LOGPROBS, f"0 to {_MAX_LOGPROBS}")
    check("prompt_logprobs", params.prompt_logprobs <= _MAX_LOGPROBS, f"0 to {_MAX_LOGPROBS}")
    for index, stop in enumerate(params.stop):
        if not stop:
            raise InvalidInput(f"sampling.stop[{index}]", "is empty; allowed: one character or more")
    for index, id_ in enumerate(params.stop_token_ids):
        if id_ >= vocab_size:
            raise InvalidInput(f"sampling.stop_token_ids[{index}]", f"is {id_}; allowed: 0 to {vocab_size - 1}")
    if params.n > 1 and params.temperature == 0 and "temperature" in fields:
        raise InvalidInput("sampling.n", f"is {params.n} with temperature 0: all completions would be the same")


def completion(delta: Delta) -> generation_pb2.Completion:
    """Returns one completion, or what is new of it."""
    return generation_pb2.Completion(
        index=delta.index,
        text=delta.text,
        token_ids=delta.token_ids,
        finish_reason=_FINISH[delta.finish],
        stop_text=delta.stop_text,
        logprobs=logprobs(delta.logprobs),
    )


def logprobs(entries: Sequence[Logprob]) -> list[generation_pb2.TokenLogprob]:
    """Returns the log probabilities of a run of tokens."""
    return [
        generation_pb2.TokenLogprob(
            token_id=entry.token_id,
            logprob=entry.logprob,
            alternatives=[
                generation_pb2.TokenAlternative(
                    token_id=alternative.token_id, logprob=alternative.logprob, text=alternative.text
                )
                for alternative in entry.alternatives
            ],
        )
        for entry in entries
    ]


def _check_count(field: str, count: int, limit: int) -> None:
    if not 1 <= count <= limit:
        raise InvalidInput(field, f"has {count} entries; allowed: 1 to {limit}")


def _check_text(field: str, text: str) -> None:
    if not text.strip():
        raise InvalidInput(field, "is empty or blank; a text is needed")


def _check_enum(field: str, value: int, known: object) -> None:
    if value not in known:  # type: ignore[operator]
        raise InvalidInput(field, f"is {value}, which this server does not know")
