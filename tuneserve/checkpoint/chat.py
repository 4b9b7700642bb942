"""Conversations as input of a chat template, the same in training and in serving.

gRPC's Struct does not keep the order of keys, and templates write the keys of tools and tool calls in the given order.
If training and serving used different orders, the model would see different tokens.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tuneserve.errors import UserError

# The usual order of a tool's keys; all other keys follow by name.
_KEYS = ("type", "function", "id", "name", "description", "parameters", "arguments", "properties", "title", "text")
# The pattern with which transformers looks for them.
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_RANK = {key: rank for rank, key in enumerate(_KEYS)}


def key_order(key: str) -> tuple[int, str]:
    """Returns the sort key of a key."""
    return _RANK.get(key, len(_RANK)), key


def number(value: float) -> int | float:
    """Returns a JSON number as templates write it: whole numbers without a fraction, unless they have too many
    digits.
    """
    # From this size on, JavaScript's JSON uses exponents, too.
    return int(value) if value.is_integer() and abs(value) < 1e21 else value


def ordered(value: Any) -> Any:
    """Returns a JSON value with the keys of every object in the order in which the server gives them to a template."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value, key=key_order)}
    if isinstance(value, list):
        return [ordered(one) for one in value]
    return number(value) if isinstance(value, float) else value


def token_ids(
    tokenizer: Any, row: Mapping[str, Any], messages: Sequence[Any], *, add_generation_prompt: bool
) -> list[int]:
    """Returns the token ids of some messages of a row, rendered with its tools and documents by the checkpoint's
    template.

    Raises UserError if the template refuses them.
    """
    ids = _rendered(tokenizer, row, messages, return_dict=False, add_generation_prompt=add_generation_prompt)
    return list(ids)


def assistant_mask(tokenizer: Any, row: Mapping[str, Any]) -> list[bool]:
    """Returns for each id of a conversation whether it is the assistant's; empty if the template marks none."""
    if not _MARKS.search(tokenizer.get_chat_template(tools=row.get("tools"))):
        return []
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    found = _rendered(tokenizer, row, row["messages"], add_generation_prompt=False, **options)
    return list(map(bool, found["assistant_masks"]))


def _rendered(tokenizer: Any, row: Mapping[str, Any], messages: Sequence[Any], **options: Any) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            ordered(list(messages)),
            tools=ordered(row.get("tools")),
            documents=ordered(row.get("documents")),
            tokenize=True,
            **options,
        )
    except TemplateError as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise UserError(
            f"the chat template can't render a conversation of {roles}: {error}", "check which roles it allows"
        ) from None
