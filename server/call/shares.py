"""How much of a shared resource one caller may use: calls, tokens, and bytes that callers make the server hold. Bytes
are bounded in total, and for each tenant on each connection.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc

from tuneserve.server.call.context import current
from tuneserve.server.call.errors import Overloaded

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Caller: TypeAlias = tuple[str, str]

# This much each caller may always hold, however much others hold.
_LEAST = 1 << 20
_RETRY_MS = 1000


@dataclass
class Shares:
    """One kind of bytes: at most `most` in total, and `most_of_one` for one caller, or one message of any size."""

    most: int
    most_of_one: int
    what: str  # what the bytes are: "answers wait to be read"
    reason: str  # of the error of a rejected call: "UNREAD"
    rejected: Callable[[], object] = lambda: None  # called for each
    bytes: int = 0
    none: asyncio.Event = field(default_factory=asyncio.Event)
    _by_caller: dict[Caller, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.none.set()

    def check(self, caller: Caller, size: int = 1, own: int = 0) -> None:
        """Raises Overloaded if `size` more bytes would be too many. `own` bytes are held by the same call already."""
        held, most = self._by_caller.get(caller, 0), self.most_of_one
        if self.bytes + size > self.most and self.bytes > own:
            most = _LEAST
        elif held == own:
            return
        if held + size > most:
            self.rejected()
            told = f"{self.what}: {held} bytes for this connection; allowed now: {most}"
            raise Overloaded(told, self.reason, _RETRY_MS)

    def add(self, caller: Caller, size: int, own: int = 0) -> None:
        """Holds bytes. Raises as `check` does."""
        self.check(caller, size, own)
        self._by_caller[caller] = self._by_caller.get(caller, 0) + size
        self.bytes += size
        self.none.clear()

    def remove(self, caller: Caller, size: int) -> None:
        """Releases bytes that were added."""
        self.bytes -= size
        self._by_caller[caller] -= size
        if not self._by_caller[caller]:
            del self._by_caller[caller]
        if not self._by_caller:
            self.none.set()

    @contextmanager
    def holding(self, caller: Caller) -> Iterator[Callable[[int], None]]:
        """Yields a function that adds bytes on each call; the block's end releases them. It raises as `check` does."""
        own = 0

        def hold(size: int) -> None:
            nonlocal own
            # A message without fields has no bytes: an entry of zero bytes would never be removed again.
            if size:
                self.add(caller, size, own)
                own += size

        try:
            yield hold
        finally:
            if own:
                self.remove(caller, own)


def caller(context: Context) -> Caller:
    """The caller of the current call: its peer address, and its tenant."""
    return context.peer(), current().tenant.name


def share(counts: Collection[Hashable], who: Hashable, most: int) -> int:
    """Returns one caller's fair share of `most`, among all that have any."""
    return most // (len(counts) + (who not in counts))


def subtract(counts: Counter[Hashable], who: Hashable, count: int) -> None:
    """Subtracts from a caller's count. A caller whose count is zero is removed: it does not share."""
    counts[who] -= count
    if not counts[who]:
        del counts[who]
