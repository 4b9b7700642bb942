"""Sampling parameters and prompts, as keyword arguments."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from google.protobuf import json_format

from tuneserve.v1 import generation_pb2 as pb

# A text, token ids, or a conversation of {"role": ..., "content": ...}.
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


class Sampling(TypedDict, total=False):
    """Parameters that are left out have the server's default, given last in each comment. Bounds are in
    protos/tuneserve/v1/generation.proto.
    """

    max_tokens: int  # of each completion; the rest of the model's length
    temperature: float  # 0 always takes the most likely token; 1
    top_p: float  # keep the most likely tokens whose probabilities sum to this; 1
    top_k: int  # keep this many of the most likely tokens; all
    min_p: float  # keep tokens with at least this probability relative to the most likely one; 0
    presence_penalty: float  # -2 to 2; 0
    frequency_penalty: float  # -2 to 2; 0
    repetition_penalty: float  # above 0; 1
    seed: int  # makes the choices repeatable
    n: int  # completions of the one prompt, not for streams; 1
    stop: str | Sequence[str]  # texts that end a completion
    stop_token_ids: Sequence[int]
    min_tokens: int  # generated before a completion may end; 0
    ignore_eos: bool  # continue after the model's end token
    logprobs: int  # of each generated token, and of this many most likely others
    prompt_logprobs: int  # the same of the prompt's tokens; not for streams
    logit_bias: Mapping[int, float]  # added to the scores of tokens, by id; -100 to 100
    allowed_token_ids: Sequence[int]
    bad_words: Sequence[str]  # never written
    include_stop_text: bool
    skip_special_tokens: bool  # true
    # The structure of every completion: one of these.
    json_schema: str | Mapping[str, Any]
    regex: str  # that the whole answer matches
    choice: Sequence[str]  # texts to choose from
    grammar: str  # EBNF, as xgrammar (GBNF) or Lark writes it


_FORMS = ("json_schema", "regex", "choice", "grammar")


def sampling(given: Mapping[str, Any], without: Sequence[str] = ()) -> pb.SamplingParams:
    """Returns the message. Raises TypeError for an unknown argument, ValueError for two structures at once."""
    if unknown := given.keys() - (Sampling.__annotations__.keys() - set(without)):
        raise TypeError(f"unexpected keyword argument: {', '.join(sorted(unknown))}")
    values = {key: value for key, value in given.items() if value is not None and key not in _FORMS}
    if isinstance(stop := values.get("stop"), str):
        values["stop"] = [stop]
    return pb.SamplingParams(**values, structured_output=_form(given))


def _form(given: Mapping[str, Any]) -> pb.StructuredOutput | None:
    forms = {key: given[key] for key in _FORMS if given.get(key) is not None}
    if len(forms) > 1:
        raise ValueError(f"{' and '.join(forms)}: give one of them")
    if isinstance(schema := forms.get("json_schema"), Mapping):
        return pb.StructuredOutput(json_schema=json.dumps(schema))
    if options := forms.get("choice"):
        return pb.StructuredOutput(choice=pb.Choice(options=options))
    return pb.StructuredOutput(**forms) if forms else None


def prompt(
    given: Prompt,
    tools: Sequence[Mapping[str, Any]] = (),
    documents: Sequence[Mapping[str, Any]] = (),
    tool_choice: str | None = None,
) -> pb.Prompt:
    """Returns the message. Tools and documents are for conversations. Raises ValueError for an invalid message."""
    if isinstance(given, str):
        return pb.Prompt(text=given)
    if all(isinstance(one, int) for one in given):
        return pb.Prompt(token_ids=pb.TokenIds(ids=given))  # type: ignore[arg-type]  # mypy does not follow `all`
    try:
        chat = json_format.ParseDict(
            {"messages": list(given), "tools": list(tools), "documents": list(documents)},
            pb.Chat(tool_choice=_tool_choice(tool_choice)),
        )
    except json_format.ParseError as error:
        raise ValueError(f"not a conversation: {error}") from None
    return pb.Prompt(chat=chat)


def _tool_choice(choice: str | None) -> pb.ToolChoice | None:
    if choice is None:
        return None
    if choice in ("auto", "none", "required"):
        return pb.ToolChoice(mode=f"TOOL_CHOICE_MODE_{choice.upper()}")
    return pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED, name=choice)
