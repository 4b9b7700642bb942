"""Slots of one kind in an engine: how many a caller may use, and who waits for one.

All of them are never one caller's, unless there are few: there is room for the next caller.
"""

from collections import Counter
from collections.abc import Hashable

from tuneserve.server.call.shares import subtract
from tuneserve.server.models.fair_queue import FairQueue, Waiter


class Slots:
    """`size` slots. A caller is given more while it uses less than `ahead` times as many as are free.

    So with 8, a caller that is alone uses eight of nine, and two use eight of seventeen each: the dynamic thresholds of
    Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches" (1998).
    """

    def __init__(self, size: int, ahead: int) -> None:
        self.size = size
        self.used = 0
        self.used_by: Counter[Hashable] = Counter()
        self.waiting = FairQueue()
        self._ahead = ahead

    def room(self, caller: Hashable) -> int:
        """Returns how many more slots a caller may use now."""
        left = self._ahead * (self.size - self.used) - self.used_by[caller]
        return max(0, -(-left // (self._ahead + 1)))

    def take(self, caller: Hashable, count: int) -> None:
        """Uses slots: more than there are, if a request needs more."""
        self.used += count
        self.used_by[caller] += count

    def free(self, caller: Hashable, count: int) -> None:
        """Uses slots no more."""
        self.used -= count
        subtract(self.used_by, caller, count)

    def next(self) -> Waiter | None:
        """Removes and returns the next waiter that may have slots; None if there is none."""
        return self.waiting.next(self.room) if self.used < self.size else None
