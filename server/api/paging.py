"""Pagination of long lists (AIP-158): a page of entries, and a token for the next page."""

import base64
import binascii
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeVar

from tuneserve.server.call.errors import Violations

T = TypeVar("T")

_USUAL, _MOST = 100, 1000


def page(items: Sequence[T], key: Callable[[T], str], size: int, token: str) -> tuple[Sequence[T], str]:
    """Returns the page of at most `size` entries after the given token, and the token of the next page: empty at the
    end.

    `items` are sorted by `key`, which is unique; they may change between two calls. Raises InvalidInput for page_size
    and page_token.
    """
    with Violations() as wrong:
        if size < 0:
            wrong.add("page_size", f"is {size}; allowed: 0 to {_MOST}")
        last = _last(wrong, token)
    first = bisect_right(items, last, key=key) if token else 0
    found = items[first : first + min(size or _USUAL, _MOST)]
    is_last = first + len(found) == len(items)
    return found, "" if is_last else base64.urlsafe_b64encode(key(found[-1]).encode()).decode()


def _last(wrong: Violations, token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        wrong.add("page_token", "is not a next_page_token of an answer")
        return ""
