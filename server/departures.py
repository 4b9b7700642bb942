"""Answers that are on their way out: how many bytes of them gRPC may hold, so that a client that reads nothing costs
bounded memory.

gRPC takes an answer and keeps it until the client makes room for it; it gives none back, and a call of one answer is
over for us before that. So what would be too much is not given to it.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc

from tuneserve.server.context import current
from tuneserve.server.errors import InvalidInput, Overloaded

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Bytes of one message: gRPC refuses larger ones, in words of its own and behind our back.
LARGEST = 64 << 20
# Bytes of answers that wait to be read: those to all callers, and those to one tenant on one connection.
_MOST = 256 << 20
_MOST_OF_ONE = 32 << 20
# So much each may have, whatever others leave unread.
_LEAST = 1 << 20
_RETRY_MS = 1000
# Bytes that gRPC puts before each message, also before an empty one.
_HEADER = 5


class Departures:
    """What gRPC was given and clients have not read."""

    def __init__(self, rejected: Callable[[], object] = lambda: None) -> None:
        """`rejected` is told of each answer, or call, that is turned away."""
        self.bytes = 0
        self._rejected = rejected
        self.none = asyncio.Event()
        self.none.set()
        self._by_caller: dict[tuple[str, str], int] = {}

    def check(self, context: Context) -> None:
        """Raises Overloaded for a caller that has too much to read already: before there is more."""
        self._check(_caller(context), 1)

    def until_done(self, size: int, context: Context) -> None:
        """Counts a call's only answer, of so many bytes, until gRPC is through with it.

        Raises Overloaded, and InvalidInput for a call that asks for too much.
        """
        self._remove_when_done(*self._add(size, context), context)

    @contextmanager
    def held(self, size: int, context: Context) -> Iterator[None]:
        """Counts a message while the block writes it; one that was not read then, as long as its call is there.

        Raises as `until_done` does.
        """
        added = self._add(size, context)
        try:
            yield
        except BaseException:
            self._remove_when_done(*added, context)
            raise
        self._remove(*added)

    def _check(self, caller: tuple[str, str], size: int) -> None:
        held, most = self._by_caller.get(caller, 0), _MOST_OF_ONE
        if self.bytes + size > _MOST:
            most = _LEAST
        elif not held:
            return
        if held + size > most:
            self._rejected()
            what = f"answers wait to be read, {held} bytes of them on this connection; allowed now: {most}"
            raise Overloaded(what, "UNREAD", _RETRY_MS)

    def _add(self, size: int, context: Context) -> tuple[int, tuple[str, str]]:
        if size > LARGEST:
            raise InvalidInput("request", f"has an answer of {size} bytes; allowed: {LARGEST}; ask for less")
        size, caller = size + _HEADER, _caller(context)
        self._check(caller, size)
        self._by_caller[caller] = self._by_caller.get(caller, 0) + size
        self.bytes += size
        self.none.clear()
        return size, caller

    def _remove_when_done(self, size: int, caller: tuple[str, str], context: Any) -> None:
        context.add_done_callback(lambda _: self._remove(size, caller))

    def _remove(self, size: int, caller: tuple[str, str]) -> None:
        self.bytes -= size
        self._by_caller[caller] -= size
        if not self._by_caller[caller]:
            del self._by_caller[caller]
        if not self._by_caller:
            self.none.set()


def _caller(context: Context) -> tuple[str, str]:
    return context.peer(), current().tenant.name
