"""Answers that are on their way out: how many bytes of them gRPC may hold, so that a client that reads nothing costs
bounded memory.

gRPC takes an answer and keeps it until the client makes room for it; it gives none back, and a call of one answer is
over for us before that. So what would be too much is not given to it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.call.shares import Caller, Context, Shares, caller

# Bytes of one message: gRPC refuses larger ones, in words of its own and behind our back. As many are written in less
# than a tenth of a second.
LARGEST = 32 << 20
# Bytes that gRPC puts before each message, also before an empty one.
_HEADER = 5


def check_size(size: int) -> None:
    """Raises InvalidInput for an answer of too many bytes."""
    if size > LARGEST:
        raise InvalidInput("request", f"has an answer of {size} bytes; allowed: {LARGEST}; ask for less")


class Departures:
    """What gRPC was given and clients have not read."""

    def __init__(self, rejected: Callable[[], object] = lambda: None) -> None:
        """`rejected` is told of each answer, or call, that is turned away."""
        self.shares = Shares(256 << 20, 32 << 20, "answers wait to be read", "UNREAD", rejected)

    def check(self, context: Context) -> None:
        """Raises Overloaded for a caller that has too much to read already: before there is more."""
        self.shares.check(caller(context))

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
        self.shares.remove(*added)

    def _add(self, size: int, context: Context) -> tuple[Caller, int]:
        check_size(size)
        added = caller(context), size + _HEADER
        self.shares.add(*added)
        return added

    def _remove_when_done(self, who: Caller, size: int, context: Any) -> None:
        context.add_done_callback(lambda _: self.shares.remove(who, size))
