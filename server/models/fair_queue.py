"""Those that wait for an engine, in the order of their turns: by priority, and within one priority callers have turns
one after the other, so that one caller's backlog does not delay the others.

Next is the caller that was given the fewest sequences since it came; of its own, what has waited longest. Knows nothing
of time, nor of how much there is room for.
"""

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

# Lines that nobody stands in any more and may stay in a heap, beside as many as there are others.
_KEPT = 64


@dataclass(eq=False)
class Waiter:
    """A request to the engine that waits."""

    caller: Hashable
    priority: int
    sequences: int
    tokens: int
    granted: "asyncio.Future[None]"


@dataclass(order=True)
class _Line:
    """One caller's, of one priority. Empty, it stays until it would be next, so that what it was given is known."""

    given: int  # sequences
    order: int
    caller: Hashable = field(compare=False)
    waiting: OrderedDict[Waiter, None] = field(default_factory=OrderedDict, compare=False)


class FairQueue:
    """Each operation takes time that grows with the logarithm of the number of callers, and with the priorities."""

    def __init__(self) -> None:
        self._by_priority: dict[int, _Lines] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, waiter: Waiter) -> None:
        """Puts one behind the others of its caller and priority."""
        self._by_priority.setdefault(waiter.priority, _Lines()).add(waiter)
        self._length += 1

    def remove(self, waiter: Waiter) -> bool:
        """Takes out one that gave up. Returns whether it was in."""
        lines = self._by_priority.get(waiter.priority)
        if lines is None or not lines.remove(waiter):
            return False
        self._taken(waiter.priority)
        return True

    def next(self) -> Waiter:
        """Takes out the one whose turn it is, of those that there are."""
        priority = min(self._by_priority)
        waiter = self._by_priority[priority].next()
        self._taken(priority)
        return waiter

    def _taken(self, priority: int) -> None:
        self._length -= 1
        if not self._by_priority[priority].waiting:
            del self._by_priority[priority]


class _Lines:
    """The lines of one priority."""

    def __init__(self) -> None:
        self.waiting = 0
        self._lines: dict[Hashable, _Line] = {}
        self._heap: list[_Line] = []
        self._given = 0  # to the caller that was next last, before it was
        self._order = 0

    def add(self, waiter: Waiter) -> None:
        line = self._lines.get(waiter.caller)
        if line is None:
            # As if it had been given as much as the others, and one more: behind those that waited for that long.
            self._order += 1
            line = self._lines[waiter.caller] = _Line(self._given + 1, self._order, waiter.caller)
            heapq.heappush(self._heap, line)
        line.waiting[waiter] = None
        self.waiting += 1

    def remove(self, waiter: Waiter) -> bool:
        line = self._lines.get(waiter.caller)
        if line is None or waiter not in line.waiting:
            return False
        del line.waiting[waiter]
        self._taken()
        return True

    def next(self) -> Waiter:
        while not (line := self._heap[0]).waiting:
            del self._lines[heapq.heappop(self._heap).caller]
        waiter, _ = line.waiting.popitem(last=False)
        self._given = line.given
        line.given += waiter.sequences
        heapq.heapreplace(self._heap, line)
        self._taken()
        return waiter

    def _taken(self) -> None:
        self.waiting -= 1
        if len(self._heap) > 2 * self.waiting + _KEPT:
            self._lines = {caller: line for caller, line in self._lines.items() if line.waiting}
            self._heap = sorted(self._lines.values())
