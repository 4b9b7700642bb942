"""Rows of generation as token ids, and which of these count: the same in training, `evaluate`, `verify` and `quantize`.

What counts in a measurement is the last answer and the token that ends it, given all that stands before. A row that is
longer than a model reads loses the beginning of its prompt, behind the system's turn: an answer without its question's
end would be no answer to it. At least half of the length is left to the answer.

Nothing here needs torch; a tokenizer is one of transformers'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneserve import chat
from tuneserve.errors import UserError


@dataclass(frozen=True)
class Example:
    """A row's prompt and answer."""

    ids: list[int]
    counted: list[bool]  # of each id, whether it is something that the model is to say
    start: int  # where the last answer begins
    is_cut: bool = False  # whether the beginning of its prompt is missing


def example(tokenizer: Any, row: Mapping[str, Any], max_length: int) -> Example:
    """Returns at most `max_length` tokens of a row, of which the last answer counts. Raises UserError as `answer`."""
    ids, start = answer(tokenizer, row)
    counted = [False] * start + [True] * (len(ids) - start)
    return _fitted(tokenizer, row, Example(ids, counted, start), max_length)


def of_all_turns(tokenizer: Any, row: Mapping[str, Any], max_length: int) -> list[Example]:
    """Returns a row as `example` does, with every answer of its conversation counted.

    Which tokens those are is what the template marks with {% generation %}, or else what it renders of an answer when
    nothing follows. Where it renders that differently afterwards (without its reasoning, say), the conversation up to
    there is an example of its own: what is learned is what the model will have to say.
    """
    ids, start = answer(tokenizer, row)
    counted, apart = [False] * start + [True] * (len(ids) - start), []
    messages = row.get("messages", ())
    # One that opens a conversation answers nothing.
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

    Raises UserError when the chat template renders the prompt differently once the answer follows it, refuses the
    conversation, or is missing.
    """
    if "prompt" in row:
        # Tokenized apart, so that the prompt has the ids that it has when it is served alone.
        prompt = tokenizer(row["prompt"])["input_ids"]
        completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return [*prompt, *completion, *end], len(prompt)
    if not tokenizer.chat_template:
        raise UserError(
            "base_model has no chat template", "give one as `chat_template`, or rows of prompt and completion"
        )
    prompt = chat.token_ids(tokenizer, row, row["messages"][:-1], add_generation_prompt=True)
    whole = chat.token_ids(tokenizer, row, row["messages"], add_generation_prompt=False)
    if whole[: len(prompt)] != prompt:
        raise UserError(
            "the chat template renders a prompt differently once an answer follows it",
            "use rows of prompt and completion with this model, or another `chat_template`",
        )
    return whole[: _end_of_turn(tokenizer, whole, len(prompt))], len(prompt)


def _end_of_turn(tokenizer: Any, ids: Sequence[int], start: int) -> int:
    """Returns where the turn that begins at `start` ends: what the template puts after it is never generated."""
    if tokenizer.eos_token_id in ids[start:]:
        return ids.index(tokenizer.eos_token_id, start) + 1
    # Another special token may end a turn; after it is a line break, mostly.
    end = len(ids)
    while end > start and tokenizer.decode(ids[end - 1]).isspace():
        end -= 1
    return end if end > start and is_special(tokenizer, ids[end - 1]) else len(ids)


def is_special(tokenizer: Any, id_: int) -> bool:
    """Whether a token is one that no text has, and that may end an answer."""
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
    # An earlier answer that was cut into, or whose question is missing, is none any more.
    place = head
    while place < room and counted[place]:
        counted[place] = False
        place += 1
    return Example(ids[:max_length], counted[:max_length], room, is_cut=True)


def _head(tokenizer: Any, row: Mapping[str, Any], ids: Sequence[int]) -> int:
    """Returns how many tokens stand before a row's first own word: special ones, tools, the system's turn."""
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
