"""Request checks that several methods share. Each raises InvalidInput with the field's path."""

from collections.abc import Container, Sequence

from google.protobuf.message import Message

from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.text.tokenizer import Tokens

BLANK = "is empty or blank; a text is needed"


def check_tokens(
    field: str,
    tokens: Sequence[Tokens],
    max_length: int | None,
    vocab_size: int,
    remedy: str = "shorten it or set TRUNCATION_END",
) -> None:
    """Raises InvalidInput for the first input that the model can't read: also if it has more than `max_length` tokens,
    unless that is None. `field` has a {} for the index.
    """
    for index, one in enumerate(tokens):
        if max_length is not None and one.length > max_length:
            # The tokens of a text that is far too long were not counted.
            known = "is far too long" if one.truncated else f"has {one.length} tokens"
            raise InvalidInput(field.format(index), f"{known}, the model takes {max_length}; {remedy}")
        if not one.length:
            raise InvalidInput(field.format(index), "contains nothing that the model reads")
        # An id without an embedding would crash the engine, with all its calls.
        if max(one.encoded.token_ids, default=0) >= vocab_size:
            raise InvalidInput(field.format(index), "has a token that the model does not know")


def check_unset(request: Message, fields: Sequence[str], description: str) -> None:
    """Raises InvalidInput for the first of the fields that is set."""
    for field, _ in request.ListFields():
        if field.name in fields:
            raise InvalidInput(field.name, description)


def check_count(field: str, count: int, limit: int) -> None:
    """Raises InvalidInput unless there is at least one entry and at most `limit`."""
    if not 1 <= count <= limit:
        raise InvalidInput(field, f"has {count} entries; allowed: 1 to {limit}")


def check_text(field: str, text: str) -> None:
    """Raises InvalidInput for an empty or blank text."""
    if not text.strip():
        raise InvalidInput(field, BLANK)


def check_enum(field: str, value: int, known: Container[int]) -> None:
    """Raises InvalidInput for a value that is not known."""
    if value not in known:
        raise InvalidInput(field, f"is {value}, which this server does not know")


def listed(labels: Sequence[str]) -> str:
    """Returns the first labels as text for an error message: a status has little room."""
    return ", ".join([label[:64] for label in labels[:20]] + ["..."] * (len(labels) > 20))
