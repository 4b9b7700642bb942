"""What one caller may have of what all share: calls, tokens, and bytes that callers make the server hold, which are
bounded in sum, and for one tenant on one connection.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc

from tuneserve.server.call.context import current
from tuneserve.server.call.errors import Overloaded

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Caller: TypeAlias = tuple[str, str]

# So much each may have held, whatever is held of others.
_LEAST = 1 << 20
_RETRY_MS = 1000


@dataclass
class Shares:
    """Of one kind of bytes: `most` at a time, and `most_of_one` of one caller, or one message of any size."""

    most: int
    most_of_one: int
    what: str  # is held: "answers wait to be read"
    reason: str  # of a call that is turned away: "UNREAD"
    rejected: Callable[[], object] = lambda: None  # is told of each
    bytes: int = 0
    none: asyncio.Event = field(default_factory=asyncio.Event)
    _by_caller: dict[Caller, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.none.set()

    def check(self, caller: Caller, size: int = 1, own: int = 0) -> None:
        """Raises Overloaded where so many bytes more would be too many, beside others than the `own` ones of a call."""
        held, most = self._by_caller.get(caller, 0), self.most_of_one
        if self.bytes + size > self.most and self.bytes > own:
            most = _LEAST
        elif held == own:
            return
        if held + size > most:
            self.rejected()
            told = f"{self.what}, {held} bytes of them on this connection; allowed now: {most}"
            raise Overloaded(told, self.reason, _RETRY_MS)

    def add(self, caller: Caller, size: int, own: int = 0) -> None:
        """Holds bytes. Raises as `check` does."""
        self.check(caller, size, own)
        self._by_caller[caller] = self._by_caller.get(caller, 0) + size
        self.bytes += size
        self.none.clear()

    def remove(self, caller: Caller, size: int) -> None:
        """Holds bytes no longer that were added."""
        self.bytes -= size
        self._by_caller[caller] -= size
        if not self._by_caller[caller]:
            del self._by_caller[caller]
        if not self._by_caller:
            self.none.set()

    @contextmanager
    def holding(self, caller: Caller) -> Iterator[Callable[[int], None]]:
        """Gives what holds more bytes, each time it is called, until the block ends. It raises as `check` does."""
        own = 0

        def hold(size: int) -> None:
            nonlocal own
            # A message without fields has no bytes, and nothing would take its caller off the list again.
            if size:
                self.add(caller, size, own)
                own += size

        try:
            yield hold
        finally:
            if own:
                self.remove(caller, own)


def caller(context: Context) -> Caller:
    """Who makes the current call: an address, and a tenant."""
    return context.peer(), current().tenant.name


def share(counts: Counter[Hashable], who: Hashable, most: int) -> int:
    """Returns what one may have of so many, beside those that have any."""
    return most // (len(counts) + (who not in counts))


def subtract(counts: Counter[Hashable], who: Hashable, count: int) -> None:
    """Takes from what one has. Who has nothing is not among those that share."""
    counts[who] -= count
    if not counts[who]:
        del counts[who]
