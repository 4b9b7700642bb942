"""A fair queue of requests for an engine: ordered by priority, and within a priority callers take turns, so that one
caller's backlog does not delay the others.

Next is the caller that has been given the fewest sequences since it joined, of those that may run more, and of its
requests the oldest. Knows nothing of time, nor of the engine's capacity.
"""

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

# Empty lines that may stay in the heap, in addition to as many as there are waiting requests, twice.
_KEPT = 64


@dataclass(eq=False)
class Waiter:
    """A waiting request to the engine."""

    caller: Hashable
    priority: int
    sequences: int
    tokens: int
    granted: "asyncio.Future[None]"


@dataclass(order=True)
class _Line:
    """One caller's requests of one priority. When empty, it stays until it would be next, to keep its count."""

    given: int  # sequences
    order: int
    caller: Hashable = field(compare=False)
    waiting: OrderedDict[Waiter, None] = field(default_factory=OrderedDict, compare=False)


class FairQueue:
    """Each operation takes time logarithmic in the number of callers, and linear in the number of priorities, and of
    callers that may run no more.
    """

    def __init__(self) -> None:
        self._by_priority: dict[int, _Lines] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, waiter: Waiter) -> None:
        """Adds a request behind the others of its caller and priority."""
        self._by_priority.setdefault(waiter.priority, _Lines()).add(waiter)
        self._length += 1

    def remove(self, waiter: Waiter) -> bool:
        """Removes a request that no longer waits. Returns whether it was in the queue."""
        lines = self._by_priority.get(waiter.priority)
        if lines is None or not lines.remove(waiter):
            return False
        self._taken(waiter.priority)
        return True

    def next(self, may_run: Callable[[Hashable], object] = lambda caller: True) -> Waiter | None:
        """Removes and returns the next request, of those whose callers may run more; None if there is none."""
        for priority in sorted(self._by_priority):
            if waiter := self._by_priority[priority].next(may_run):
                self._taken(priority)
                return waiter
        return None

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
        self._given = 0  # the count of the caller that was served last, before that turn
        self._order = 0

    def add(self, waiter: Waiter) -> None:
        line = self._lines.get(waiter.caller)
        if line is None:
            # A new caller starts one above the count served last: behind callers that have waited at that count.
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

    def next(self, may_run: Callable[[Hashable], object]) -> Waiter | None:
        held_back: list[_Line] = []
        found = None
        while self._heap and not found:
            line = heapq.heappop(self._heap)
            if not line.waiting:
                del self._lines[line.caller]
                continue
            held_back.append(line)
            if may_run(line.caller):
                found, _ = line.waiting.popitem(last=False)
                self._given = line.given
                line.given += found.sequences
        for line in held_back:
            heapq.heappush(self._heap, line)
        if found:
            self._taken()
        return found

    def _taken(self) -> None:
        self.waiting -= 1
        if len(self._heap) > 2 * self.waiting + _KEPT:
            self._lines = {caller: line for caller, line in self._lines.items() if line.waiting}
            self._heap = sorted(self._lines.values())
