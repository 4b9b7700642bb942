"""Long lists in pages (AIP-158): so many entries, and a token that asks for those behind them."""

import base64
import binascii
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeVar

from tuneserve.server.call.errors import InvalidInput

T = TypeVar("T")

_USUAL, _MOST = 100, 1000


def page(items: Sequence[T], key: Callable[[T], str], size: int, token: str) -> tuple[Sequence[T], str]:
    """Returns the entries behind those that a token stands for, at most `size`, and the next token: empty at the end.

    `items` are sorted by `key`, which tells each from all others; they may change between two calls. Raises
    InvalidInput for page_size and page_token.
    """
    if size < 0:
        raise InvalidInput("page_size", f"is {size}; allowed: 0 to {_MOST}")
    first = bisect_right(items, _last(token), key=key) if token else 0
    found = items[first : first + min(size or _USUAL, _MOST)]
    is_last = first + len(found) == len(items)
    return found, "" if is_last else base64.urlsafe_b64encode(key(found[-1]).encode()).decode()


def _last(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidInput("page_token", "is none that an answer had") from None
