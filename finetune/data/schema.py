"""Checks a raw row of any supported format, and converts it into the schema of its task (tuneserve.checkpoint.rows).
Preferences have a module of their own (preferences).

Nothing here needs torch or a tokenizer.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from tuneserve.checkpoint import entities
from tuneserve.checkpoint.rows import Row
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.data import annotations
from tuneserve.finetune.fields import template_columns


class BadRow(Exception):
    """Why a row can't be used."""


def row(raw: Row, config: FinetuneConfig) -> Row:
    """Returns the row in the schema of the config's task. Raises BadRow."""
    return _BY_TASK[config.task](_chosen(raw, config), config)


# The formats of a row, by task. A row that fits several of them is read in the format that `columns` names.
_FORMATS: dict[str, list[tuple[set[str], ...]]] = {
    "sequence-classification": [],
    "token-classification": [
        ({"tokens", "tags"}, {"text", "label", "labels"}),
        ({"label", "labels"}, {"entities", "spans"}),
    ],
    "embedding": [],
    "ranking": [],
    "generation": [({"prompt", "completion"}, {"messages"}, {"conversations"}, {"instruction", "input", "output"})],
}


def _chosen(raw: Row, config: FinetuneConfig) -> Row:
    named = set(config.columns or ())
    others: set[str] = set()
    # The columns of a template may have any name.
    for formats in _FORMATS[config.task] if not config.prompt_template else ():
        if any(named & one for one in formats):
            others.update(*(one for one in formats if not named & one))
    return {key: value for key, value in raw.items() if key not in others}


def _text(raw: Row, name: str) -> str:
    if name not in raw:
        raise BadRow(f"no {name}; found {', '.join(map(str, raw))} (map with `columns`)")
    return _good_text(raw[name], name)


def _good_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text but {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"{name} is blank")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{name} is not valid Unicode (half of a surrogate pair)") from None
    return value


def _label(value: Any, name: str) -> str:
    # Labels are often class numbers; true and false are what YAML and JSON make of yes and no.
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise BadRow(f"{name} is {value}")
        return str(value)
    return _good_text(value, name)


def _sequence_row(raw: Row, config: FinetuneConfig) -> Row:
    row: Row = {"text": _text(raw, "text")}
    if "head" in raw or "tail" in raw:
        row["text"] = _marked(row["text"], raw.get("head"), raw.get("tail"))
    # An empty cell: only some rows of the file have a text_pair.
    if raw.get("text_pair") is not None and raw["text_pair"] != "" and not str(raw["text_pair"]).isspace():
        row["text_pair"] = _text(raw, "text_pair")
    if config.problem_type == "multi-label":
        return row | {"labels": _label_set(raw.get("labels"))}
    if "label" not in raw:
        raise BadRow(f"no label; found {', '.join(map(str, raw))} (map with `columns`)")
    if config.problem_type == "regression":
        return row | {"label": _number(raw["label"])}
    return row | {"label": _label(raw["label"], "label")}


def _label_set(labels: Any) -> list[str]:
    if isinstance(labels, str):
        # A CSV cell.
        labels = [name.strip() for name in labels.split("|") if name.strip()]
    if not isinstance(labels, list):
        raise BadRow("labels is not a list (in CSV: names with | between)")
    return sorted({_label(label, "labels") for label in labels})


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"label is {value!r}, not a number")
    return number


def _marked(text: str, head: Any, tail: Any) -> str:
    """Returns the text with marks around head and tail. Callers of the served model have to mark them in the same way.

    The marks are signs that every tokenizer knows (Zhou and Chen 2021), so that no new token has to be learned.
    """
    spans = []
    for name, span, sign in (("head", head, "@"), ("tail", tail, "#")):
        is_span = isinstance(span, list) and len(span) == 2 and all(type(place) is int for place in span)
        if not is_span or not 0 <= span[0] < span[1] <= len(text):
            raise BadRow(f"{name} is not [start, end] within the text, in characters")
        spans.append((span[0], span[1], sign))
    spans.sort()
    if spans[0][1] > spans[1][0]:
        raise BadRow("head and tail overlap")
    for start, end, sign in reversed(spans):
        text = f"{text[:start]}{sign} {text[start:end]} {sign}{text[end:]}"
    return text


def _token_row(raw: Row) -> Row:
    if "tokens" not in raw and "tags" not in raw:
        try:
            text, found = annotations.read(raw)
        except ValueError as error:
            raise BadRow(str(error)) from None
        spans = [{"start": start, "end": end, "label": _label(label, "label")} for start, end, label in found]
        return {"text": _good_text(text, "text"), "entities": spans}
    tokens, tags = raw.get("tokens"), raw.get("tags")
    if not isinstance(tokens, list) or not isinstance(tags, list):
        raise BadRow("tokens and tags must be lists (map with `columns`)")
    if not tokens:
        raise BadRow("tokens is empty")
    if len(tokens) != len(tags):
        raise BadRow(f"{len(tokens)} tokens but {len(tags)} tags")
    words = [_good_text(token, f"token {number}") for number, token in enumerate(tokens, start=1)]
    return entities.from_words(words, iob2([_label(tag, "tag") for tag in tags]))


# The prefixes of BILOU, IOBES and BMES that IOB2 lacks, and what they are in IOB2.
_PREFIXES = {"B": "B", "I": "I", "M": "I", "L": "I", "E": "I", "U": "B", "S": "B"}


def iob2(tags: Sequence[str]) -> list[str]:
    """Converts tags of IOB1, IOB2, BILOU, IOBES or BMES to IOB2: every entity begins with B-.

    Raises BadRow for a tag of another scheme.
    """
    fixed: list[str] = []
    for tag in tags:
        prefix, dash, kind = tag.partition("-")
        if tag != "O" and not (prefix in _PREFIXES and dash and kind):
            raise BadRow(f"tag {tag!r} is not O, B-TYPE or I-TYPE (or L-, U-, M-, E-, S- of BILOU, IOBES and BMES)")
        tag = tag if tag == "O" else f"{_PREFIXES[prefix]}-{kind}"
        begins = tag.startswith("I-") and (not fixed or fixed[-1][2:] != kind)
        fixed.append(f"B-{kind}" if begins else tag)
    return fixed


def generation_row(raw: Row, config: FinetuneConfig) -> Row:
    """Returns a row of generation. Raises BadRow."""
    if config.prompt_template:
        return {"prompt": _filled(config.prompt_template, raw), "completion": _text(raw, "completion")}
    prompt, completion = raw.get("prompt"), raw.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return _chat(raw, [*prompt, *completion])
    if "messages" in raw:
        return _chat(raw, raw["messages"])
    if "conversations" in raw:
        return _chat(raw, _from_sharegpt(raw))
    if "instruction" in raw and "output" in raw:
        # Alpaca: `input` is often an empty text.
        asked = [_text(raw, "instruction"), *([_text(raw, "input")] if raw.get("input") else [])]
        turns = [{"role": "user", "content": "\n\n".join(asked)}, {"role": "assistant", "content": raw["output"]}]
        return _chat(raw, [*_system(raw), *turns])
    return {"prompt": _text(raw, "prompt"), "completion": _text(raw, "completion")}


def _system(raw: Row) -> list[Any]:
    return [{"role": "system", "content": raw["system"]}] if raw.get("system") else []


def _filled(template: str, raw: Row) -> str:
    return template.format(**{name: _text(raw, name) for name in template_columns(template)})


_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
             "tool": "tool", "observation": "tool"}  # fmt: skip


def _from_sharegpt(raw: Row) -> list[Any]:
    turns = raw["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRow("conversations is not a list of {from, value}")
    for number, turn in enumerate(turns, start=1):
        if turn.get("from") not in _SHAREGPT:
            raise BadRow(
                f"conversations: turn {number}: from is {turn.get('from')!r}, not one of {', '.join(_SHAREGPT)}"
            )
    return _system(raw) + [{"role": _SHAREGPT[turn["from"]], "content": turn.get("value")} for turn in turns]


# The keys of a message, besides role and content, that chat templates with tools read.
_TOOL_KEYS = ("tool_calls", "tool_call_id", "name")


def _chat(raw: Row, value: Any) -> Row:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise BadRow("messages is not a list of {role, content}")
    messages = []
    for number, message in enumerate(value, start=1):
        if message.get("role") not in ("system", "user", "assistant", "tool"):
            raise BadRow(f"message {number}: role is {message.get('role')!r}, not system, user, assistant or tool")
        more = {key: message[key] for key in _TOOL_KEYS if message.get(key)}
        # An assistant's message that calls a tool may have no content.
        content = message.get("content") or "" if "tool_calls" in more else message.get("content")
        if "tool_calls" not in more:
            content = _good_text(content, f"content of message {number}")
        messages.append({"role": message["role"], "content": content} | more)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise BadRow("messages does not end with an assistant's answer")
    row: Row = {"messages": messages}
    for key in ("tools", "documents"):
        given = raw.get(key)
        if given is not None and not (isinstance(given, list) and all(isinstance(one, dict) for one in given)):
            raise BadRow(f"{key} is not a list of JSON objects")
        if given:
            row[key] = given
    return row


def _pair_row(raw: Row) -> Row:
    row = {"query": _text(raw, "query"), "positive": _text(raw, "positive")}
    negatives = raw.get("negatives") or []
    # A single one, as in a CSV cell.
    negatives = [negatives] if isinstance(negatives, str) else negatives
    if not isinstance(negatives, list):
        raise BadRow("negatives is not a list of texts")
    found = [_good_text(text, f"negative {number}") for number, text in enumerate(negatives, start=1)]
    if row["positive"] in found:
        raise BadRow("the positive is among the negatives")
    return row | ({"negatives": found} if found else {})


_BY_TASK: dict[str, Callable[[Row, FinetuneConfig], Row]] = {
    "sequence-classification": _sequence_row,
    "token-classification": lambda raw, _: _token_row(raw),
    "generation": generation_row,
    "embedding": lambda raw, _: _pair_row(raw),
    "ranking": lambda raw, _: _pair_row(raw),
}
