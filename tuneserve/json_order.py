"""The order of the keys in tools and their calls, the same in training and in serving.

gRPC's Struct forgets the order of its keys, and a chat template writes them as they come: what was trained in another
order than what is served would be other tokens.
"""

from typing import Any

# As tools are usually written; the others follow by name.
_KEYS = ("type", "function", "id", "name", "description", "parameters", "arguments", "properties", "title", "text")
_RANK = {key: rank for rank, key in enumerate(_KEYS)}


def key_order(key: str) -> tuple[int, str]:
    """Returns what to sort keys by."""
    return _RANK.get(key, len(_RANK)), key


def ordered(value: Any) -> Any:
    """Returns a JSON value with the keys of every object in order, as the server gives it to a template."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value, key=key_order)}
    if isinstance(value, list):
        return [ordered(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
