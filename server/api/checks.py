"""Request checks that several methods share. Each adds its violations, with the field's path, to those of the call; a
check that needs tokens raises InvalidInput.
"""

from collections.abc import Container, Sequence

from google.protobuf.message import Message

from tuneserve.server.call.errors import Violations
from tuneserve.server.text.tokenizer import Tokens

BLANK = "is empty or blank; a text is needed"


def check_tokens(
    field: str,
    tokens: Sequence[Tokens],
    max_length: int | None,
    vocab_size: int,
    remedy: str = "shorten it or set TRUNCATION_END",
) -> None:
    """Raises InvalidInput for inputs that the model can't read: with no token, with one that it does not know, or with
    more than `max_length`; None is no limit. `field` has a {} for the index.
    """
    with Violations() as wrong:
        for index, one in enumerate(tokens):
            if max_length is not None and one.length > max_length:
                # The tokens of a text that is far too long were not counted.
                known = "is far too long" if one.truncated else f"has {one.length} tokens"
                wrong.add(field.format(index), f"{known}, the model takes {max_length}; {remedy}")
            elif not one.length:
                wrong.add(field.format(index), "contains nothing that the model reads")
            # An id without an embedding would crash the engine, with all its calls.
            elif max(one.encoded.token_ids, default=0) >= vocab_size:
                wrong.add(field.format(index), "has a token that the model does not know")


def check_unset(wrong: Violations, request: Message, fields: Sequence[str], description: str) -> None:
    """Refuses fields that are set."""
    for field, _ in request.ListFields():
        if field.name in fields:
            wrong.add(field.name, description)


def check_count(wrong: Violations, field: str, count: int, limit: int, least: int = 1) -> bool:
    """Refuses fewer entries than `least`, and more than `limit`. Returns whether the entries may be looked at: they may
    not if there are too many.
    """
    if not least <= count <= limit:
        wrong.add(field, f"has {count} entries; allowed: {least} to {limit}")
    return count <= limit


def check_text(wrong: Violations, field: str, text: str) -> None:
    """Refuses an empty or blank text."""
    if not text.strip():
        wrong.add(field, BLANK)


def check_enum(wrong: Violations, field: str, value: int, known: Container[int]) -> None:
    """Refuses a value that is not known."""
    if value not in known:
        wrong.add(field, f"is {value}, which this server does not know")


def listed(labels: Sequence[str]) -> str:
    """Returns the first labels as text for an error message: a status has little room."""
    return ", ".join([label[:64] for label in labels[:20]] + ["..."] * (len(labels) > 20))
