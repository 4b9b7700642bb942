"""Converts messages of generation to the engine's inputs, and outputs back. Checks all their fields, except those of
structured output (`text/structured_output.py`).

A wrong field is added to the call's Violations, never with the caller's text; the value that is returned for it is
never used. Knows the protos and the engine's interface; does no I/O.
"""

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from google.protobuf import struct_pb2

from tuneserve.checkpoint.chat import key_order, number
from tuneserve.server.api.checks import check_enum
from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.engine.interface import Delta, Logprob, Sampling, StructuredOutput
from tuneserve.server.turns import in_turns
from tuneserve.v1 import generation_pb2 as pb

_FINISH = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
}
_TOOL_CHOICES = (
    pb.TOOL_CHOICE_MODE_UNSPECIFIED,
    pb.TOOL_CHOICE_MODE_AUTO,
    pb.TOOL_CHOICE_MODE_NONE,
    pb.TOOL_CHOICE_MODE_REQUIRED,
)
# vLLM's own bounds, checked here so that the error can name the field.
_MAX_LOGPROBS = 20
_MAX_BAD_WORDS = 128
_MAX_N = 128
# Every stop string is searched for after every token; every bad word is tokenized.
_MAX_STOPS = 64
_MAX_TEXT = 1024
# Limits of vLLM's engine on GPUs: more of them crash it, with all its calls. Its limit for stop ids is 128, which
# includes the model's own.
_MAX_STOP_IDS = 64
_MAX_ALLOWED_IDS = 1024
_MAX_BIASES = 1024
MAX_BAD_TOKENS = 1024
# Values in all the JSON objects of one call, nested ones included: they are converted on the event loop.
_MAX_VALUES = 1 << 14
# Log probabilities of one answer, of the tokens and of their alternatives: each takes several objects. Those of a
# prompt come from the engine all at once, and vLLM decodes their texts on the event loop. For a token that is a part of
# a character it also decodes the tokens before it, which takes four times as long.
_MOST_LOGPROBS = 1 << 17
_MOST_PROMPT_LOGPROBS = 1 << 13
_FRAGMENT = 4


@dataclass(frozen=True)
class Conversation:
    """The inputs of a chat template."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    documents: list[dict[str, Any]]
    arguments: dict[str, Any]
    open_turn: bool  # whether the assistant's turn is opened after the last message
    required: str | None  # the tool that must be called (any if empty); None if the model decides


def conversation(wrong: Violations, chat: pb.Chat, limit: int) -> Conversation:
    """Returns a checked conversation. `limit`, the tokens that the model reads, also bounds messages and JSON values:
    a template writes at least one token for each. Raises InvalidInput for more values.
    """
    if not chat.messages:
        wrong.add("prompt.chat.messages", "is empty; at least one message is needed")
    choice = chat.tool_choice
    check_enum(wrong, "prompt.chat.tool_choice.mode", choice.mode, _TOOL_CHOICES)
    is_required = choice.mode == pb.TOOL_CHOICE_MODE_REQUIRED
    if choice.name and not is_required:
        wrong.add("prompt.chat.tool_choice.name", "is set; allowed: with TOOL_CHOICE_MODE_REQUIRED only")
    if is_required and not chat.tools:
        wrong.add("prompt.chat.tools", "is empty; TOOL_CHOICE_MODE_REQUIRED needs at least one")
    json = _Json(wrong, min(limit, _MAX_VALUES))
    turns = enumerate(chat.messages if _check_count(wrong, "prompt.chat.messages", chat.messages, limit) else ())
    messages = [_message(wrong, message, f"prompt.chat.messages[{index}]", json) for index, message in turns]
    tools = json.objects(chat.tools, "prompt.chat.tools")
    return Conversation(
        messages,
        [] if choice.mode == pb.TOOL_CHOICE_MODE_NONE else tools,
        json.objects(chat.documents, "prompt.chat.documents"),
        json.object(chat.template_arguments, "prompt.chat.template_arguments"),
        chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True,
        choice.name if is_required else None,
    )


def _message(wrong: Violations, message: pb.ChatMessage, where: str, json: "_Json") -> dict[str, Any]:
    if not message.role:
        wrong.add(f"{where}.role", "is empty; for example user")
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    # Only set if not empty: templates test whether these keys exist.
    if message.tool_calls:
        turn["tool_calls"] = json.objects(message.tool_calls, f"{where}.tool_calls")
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.name:
        turn["name"] = message.name
    return turn


class _Json:
    """Converts the JSON objects of one call, with at most `limit` values in all. Counts values before reading them."""

    def __init__(self, wrong: Violations, limit: int) -> None:
        self._wrong = wrong
        self._limit = self._left = limit

    def objects(self, values: Sequence[struct_pb2.Struct], where: str) -> list[dict[str, Any]]:
        """Returns a list of JSON objects in the form that templates expect."""
        self._count(values, where)
        return [self.object(value, f"{where}[{index}]") for index, value in enumerate(values)]

    def object(self, value: struct_pb2.Struct, where: str) -> dict[str, Any]:
        """Returns a JSON object in the form that templates expect: whole numbers as int, keys in a fixed order."""
        self._count(value.fields, where)
        return {key: self._plain(value.fields[key], where) for key in sorted(value.fields, key=key_order)}

    def _plain(self, value: struct_pb2.Value, where: str) -> Any:
        kind = value.WhichOneof("kind")
        if kind == "number_value":
            if not math.isfinite(value.number_value):
                self._wrong.add(where, f"contains {value.number_value}, which is not JSON")
                return None
            return number(value.number_value)
        if kind == "struct_value":
            return self.object(value.struct_value, where)
        if kind == "list_value":
            self._count(value.list_value.values, where)
            return [self._plain(one, where) for one in value.list_value.values]
        return None if kind in (None, "null_value") else getattr(value, kind)

    def _count(self, values: Sized, where: str) -> None:
        self._left -= len(values)
        if self._left < 0:
            raise InvalidInput(where, f"exceeds the {self._limit} values that a call's JSON objects may have in all")


def check_arguments(wrong: Violations, arguments: Mapping[str, Any], reserved: Iterable[str]) -> None:
    """Refuses template arguments that would override the server's."""
    taken = sorted(arguments.keys() & set(reserved))
    if taken:
        wrong.add("prompt.chat.template_arguments", f"may not hold {', '.join(taken)}")


def token_ids(wrong: Violations, prompt: pb.TokenIds, limit: int, vocab_size: int, redacted: bool) -> list[int]:
    """Returns checked token ids: at most `limit`."""
    if redacted:
        wrong.add("prompt.token_ids", "is not for this model, which masks personal data in texts; use text")
        return []
    if not prompt.ids:
        wrong.add("prompt.token_ids.ids", "is empty; at least one token is needed")
    return list(prompt.ids) if _check_ids(wrong, "prompt.token_ids.ids", prompt.ids, limit, vocab_size) else []


def sampling(
    params: pb.SamplingParams,
    structured: StructuredOutput | None,
    prompt_length: int,
    max_length: int,
    fragments: int = 0,
) -> Sampling:
    """Returns the engine's sampling parameters for checked params and a prompt of `prompt_length` tokens. `fragments`
    of these are only parts of characters, which matters for `prompt_logprobs` alone. Raises InvalidInput.
    """
    room = max_length - prompt_length
    if not prompt_length:
        raise InvalidInput("prompt", "has no tokens; at least one is needed")
    if room < 1:
        raise InvalidInput(
            "prompt",
            f"has {prompt_length} tokens; the model takes {max_length}, with at least one more to generate",
        )
    fields = {field.name: value for field, value in params.ListFields() if field.name != "structured_output"}
    max_tokens = min(fields.get("max_tokens", room), room)
    with Violations() as wrong:
        if params.min_tokens > max_tokens:
            wrong.add("sampling.min_tokens", f"is {params.min_tokens}; allowed: at most {max_tokens} here")
        if "logprobs" in fields:
            asked = fields.get("n", 1) * max_tokens * (1 + params.logprobs)
            what = f"{max_tokens} tokens in each of {fields.get('n', 1)} completions"
            _check_logprobs(wrong, "logprobs", params.logprobs, what, asked, _MOST_LOGPROBS)
        if "prompt_logprobs" in fields:
            counted, what = prompt_length + (_FRAGMENT - 1) * fragments, f"{prompt_length} tokens"
            if fragments:
                what += f", {fragments} of them parts of characters, which count {_FRAGMENT} times"
            asked = counted * (1 + params.prompt_logprobs)
            _check_logprobs(wrong, "prompt_logprobs", params.prompt_logprobs, what, asked, _MOST_PROMPT_LOGPROBS)
    return Sampling(**{**fields, "max_tokens": max_tokens, "structured": structured})


def check_sampling(wrong: Violations, params: pb.SamplingParams, vocab_size: int, stream: bool) -> None:
    """Checks fields that may be wrong for any prompt."""
    fields = {field.name: value for field, value in params.ListFields()}

    def check(name: str, ok: bool, allowed: str) -> None:
        if name in fields and not ok:
            wrong.add(f"sampling.{name}", f"is {fields[name]}; allowed: {allowed}")

    # `not a < b` also refuses NaN, which compares false to everything.
    check("max_tokens", params.max_tokens >= 1, "1 or more")
    check("temperature", 0 <= params.temperature < math.inf, "0 or more")
    check("top_p", 0 < params.top_p <= 1, "over 0, at most 1")
    check("min_p", 0 <= params.min_p <= 1, "0 to 1")
    check("presence_penalty", -2 <= params.presence_penalty <= 2, "-2 to 2")
    check("frequency_penalty", -2 <= params.frequency_penalty <= 2, "-2 to 2")
    check("repetition_penalty", 0 < params.repetition_penalty < math.inf, "over 0")
    check("top_k", 0 <= params.top_k <= vocab_size, f"0 to {vocab_size}")
    check("seed", params.seed >= 0, "0 to 2^63 - 1")
    check("min_tokens", params.min_tokens >= 0, "0 or more")
    check("n", 1 <= params.n <= _MAX_N, f"1 to {_MAX_N}")
    check("logprobs", 0 <= params.logprobs <= _MAX_LOGPROBS, f"0 to {_MAX_LOGPROBS}")
    check("prompt_logprobs", 0 <= params.prompt_logprobs <= _MAX_LOGPROBS, f"0 to {_MAX_LOGPROBS}")
    if stream and "prompt_logprobs" in fields:
        wrong.add("sampling.prompt_logprobs", "is not for streams; use Generate")
    if 1 < params.n <= _MAX_N and params.temperature == 0 and "temperature" in fields:
        wrong.add("sampling.n", f"is {params.n} with temperature 0: all completions would be the same")
    _check_texts(wrong, "sampling.stop", params.stop, _MAX_STOPS)
    if _check_texts(wrong, "sampling.bad_words", params.bad_words, _MAX_BAD_WORDS):
        for index, word in enumerate(params.bad_words):
            if word.isspace():
                wrong.add(f"sampling.bad_words[{index}]", "is blank")
    _check_ids(wrong, "sampling.stop_token_ids", params.stop_token_ids, _MAX_STOP_IDS, vocab_size)
    _check_ids(wrong, "sampling.allowed_token_ids", params.allowed_token_ids, _MAX_ALLOWED_IDS, vocab_size)
    if _check_count(wrong, "sampling.logit_bias", params.logit_bias, _MAX_BIASES):
        for id_, bias in params.logit_bias.items():
            if not 0 <= id_ < vocab_size:
                wrong.add(f"sampling.logit_bias[{id_}]", f"is for no token; allowed: 0 to {vocab_size - 1}")
            if not -100 <= bias <= 100:
                wrong.add(f"sampling.logit_bias[{id_}]", f"is {bias}; allowed: -100 to 100")


async def completion(delta: Delta) -> pb.Completion:
    """Returns one completion, or the new part of it."""
    return pb.Completion(
        index=delta.index,
        text=delta.text,
        token_ids=delta.token_ids,
        finish_reason=_FINISH[delta.finish],
        stop_text=delta.stop_text,
        stop_token_id=delta.stop_token_id,
        logprobs=await logprobs(delta.logprobs) if delta.logprobs else (),
        reasoning=delta.reasoning,
        tool_calls=[
            pb.ToolCall(index=call.index, id=call.id, name=call.name, arguments=call.arguments)
            for call in delta.tool_calls
        ],
    )


async def logprobs(entries: Sequence[Logprob]) -> list[pb.TokenLogprob]:
    """Returns the log probabilities of a run of tokens."""
    return [
        pb.TokenLogprob(
            token_id=entry.token_id,
            logprob=entry.logprob,
            alternatives=[
                pb.TokenAlternative(token_id=alternative.token_id, logprob=alternative.logprob, text=alternative.text)
                for alternative in entry.alternatives
            ],
        )
        async for entry in in_turns(entries)
    ]


def _check_logprobs(wrong: Violations, name: str, value: int, what: str, asked: int, most: int) -> None:
    if asked > most:
        what = f"is {value} for {what}: {asked} log probabilities; allowed: {most} in one answer"
        wrong.add(f"sampling.{name}", what)


def _check_count(wrong: Violations, field: str, values: Sized, limit: int) -> bool:
    """Returns whether the values may be looked at: they may not if there are too many."""
    if len(values) > limit:
        wrong.add(field, f"has {len(values)} entries; allowed: {limit}")
    return len(values) <= limit


def _check_ids(wrong: Violations, field: str, ids: Sequence[int], limit: int, vocab_size: int) -> bool:
    """Checks the count first: allowed numbers of ids are checked in milliseconds, larger ones may take seconds."""
    if not _check_count(wrong, field, ids, limit):
        return False
    if min(ids, default=0) < 0 or max(ids, default=0) >= vocab_size:
        bad = [(index, id_) for index, id_ in enumerate(ids) if not 0 <= id_ < vocab_size]
        wrong.each(bad, lambda one: (f"{field}[{one[0]}]", f"is {one[1]}; allowed: 0 to {vocab_size - 1}"))
    return True


def _check_texts(wrong: Violations, field: str, texts: Sequence[str], limit: int) -> bool:
    if not _check_count(wrong, field, texts, limit):
        return False
    for index, text in enumerate(texts):
        if not 1 <= len(text) <= _MAX_TEXT:
            wrong.add(f"{field}[{index}]", f"has {len(text)} characters; allowed: 1 to {_MAX_TEXT}")
    return True
