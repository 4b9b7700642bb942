"""Rows of generation as token ids, and which of these count: the same in training, `evaluate`, `verify` and `quantize`.

A measurement counts the last answer and the token that ends it, given everything before. If a row is longer than the
model reads, its prompt is truncated at the beginning, after the system message, because an answer depends most on the
end of its question. At least half of the length is left to the answer.

Nothing here needs torch; a tokenizer is one of transformers'.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tuneserve.checkpoint import chat
from tuneserve.errors import UserError


@dataclass(frozen=True)
class Example:
    """A row's prompt and answer."""

    ids: list[int]
    counted: list[bool]  # for each id, whether the model should generate it
    start: int  # the position where the last answer begins
    is_truncated: bool = False  # whether the prompt was truncated


def example(tokenizer: Any, row: Mapping[str, Any], max_length: int) -> Example:
    """Returns at most `max_length` tokens of a row, of which the last answer counts. Raises UserError as `answer`."""
    ids, start = answer(tokenizer, row)
    counted = [False] * start + [True] * (len(ids) - start)
    return _fitted(tokenizer, row, Example(ids, counted, start), max_length)


def of_all_turns(tokenizer: Any, row: Mapping[str, Any], max_length: int) -> list[Example]:
    """Returns a row as `example` does, with every answer of its conversation counted.

    The tokens of an answer are those that the template marks with {% generation %}, or else those that it renders for
    an answer when no turn follows. If it renders an answer differently when turns follow (without its reasoning, say),
    the conversation up to that answer is an example of its own, so that the model learns what it will have to generate.
    """
    ids, start = answer(tokenizer, row)
    counted, apart = [False] * start + [True] * (len(ids) - start), []
    messages = row.get("messages", ())
    # An assistant's message that opens a conversation answers nothing.
    earlier = [place for place, turn in enumerate(messages[:-1]) if place and turn["role"] == "assistant"]
    if earlier and (marked := chat.assistant_mask(tokenizer, row)):
        counted[:start] = marked[:start]
        earlier = []
    for place in earlier:
        part = {**row, "messages": messages[: place + 1]}
        its, begin = answer(tokenizer, part)
        if its == ids[: len(its)]:
            counted[begin : len(its)] = [True] * (len(its) - begin)
        else:
            apart.append(example(tokenizer, part, max_length))
    return [_fitted(tokenizer, row, Example(ids, counted, start), max_length), *apart]


def answer(tokenizer: Any, row: Mapping[str, Any]) -> tuple[list[int], int]:
    """Returns the token ids of a whole row and the position where its answer begins.

    Raises UserError if the chat template renders the prompt differently when the answer follows it, ignores the row's
    documents, refuses the conversation, or is missing.
    """
    if "prompt" in row:
        # Tokenized separately, so that the prompt has the same ids as when it is served.
        prompt = tokenizer(row["prompt"])["input_ids"]
        completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return [*prompt, *completion, *end], len(prompt)
    if not tokenizer.chat_template:
        raise UserError(
            "base_model has no chat template", "give one as `chat_template`, or rows of prompt and completion"
        )
    prompt = chat.token_ids(tokenizer, row, row["messages"][:-1], add_generation_prompt=True)
    if row.get("documents") and prompt == _without_documents(tokenizer, row):
        raise UserError(
            "the chat template ignores the documents of a row",
            "put them into a message, or give a `chat_template` that writes them",
        )
    whole = chat.token_ids(tokenizer, row, row["messages"], add_generation_prompt=False)
    if whole[: len(prompt)] != prompt:
        raise UserError(
            "the chat template renders a prompt differently once an answer follows it",
            "use rows of prompt and completion with this model, or another `chat_template`",
        )
    return whole[: _end_of_turn(tokenizer, whole, len(prompt))], len(prompt)


def _without_documents(tokenizer: Any, row: Mapping[str, Any]) -> list[int]:
    """Returns the prompt as it would be rendered without its documents; an empty list if it can't be."""
    with suppress(UserError):
        return chat.token_ids(tokenizer, {**row, "documents": None}, row["messages"][:-1], add_generation_prompt=True)
    return []


def _end_of_turn(tokenizer: Any, ids: Sequence[int], start: int) -> int:
    """Returns the end of the turn that begins at `start`: tokens that the template puts after it are never
    generated.
    """
    if tokenizer.eos_token_id in ids[start:]:
        return ids.index(tokenizer.eos_token_id, start) + 1
    # Another special token may end a turn; mostly a line break follows it.
    end = len(ids)
    while end > start and tokenizer.decode(ids[end - 1]).isspace():
        end -= 1
    return end if end > start and is_special(tokenizer, ids[end - 1]) else len(ids)


def is_special(tokenizer: Any, id_: int) -> bool:
    """Whether a token is special: it never occurs in text, and may end an answer."""
    added = tokenizer.added_tokens_decoder
    return id_ in added and bool(added[id_].special)


def _fitted(tokenizer: Any, row: Mapping[str, Any], whole: Example, max_length: int) -> Example:
    if len(whole.ids) <= max_length:
        return whole
    room = max(max_length - (len(whole.ids) - whole.start), max_length // 2)
    if whole.start <= room:
        return Example(whole.ids[:max_length], whole.counted[:max_length], whole.start)
    head = _head(tokenizer, row, whole.ids)
    head = head if head <= room // 2 else 0
    begin = whole.start - (room - head)
    ids = whole.ids[:head] + whole.ids[begin:]
    counted = whole.counted[:head] + whole.counted[begin:]
    # An earlier answer whose beginning or question was truncated does not count.
    place = head
    while place < room and counted[place]:
        counted[place] = False
        place += 1
    return Example(ids[:max_length], counted[:max_length], room, is_truncated=True)


def _head(tokenizer: Any, row: Mapping[str, Any], ids: Sequence[int]) -> int:
    """Returns how many tokens come before a row's first own text: special tokens, tools, the system message."""
    if "prompt" in row:
        other = tokenizer("")["input_ids"]
    else:
        system = [message for message in row["messages"][:1] if message["role"] == "system"]
        empty = [*system, {"role": "user", "content": ""}]
        other = chat.token_ids(tokenizer, row, empty, add_generation_prompt=False)
    same = 0
    for mine, its in zip(ids, other, strict=False):
        if mine != its:
            break
        same += 1
    return same
