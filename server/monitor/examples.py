"""The last texts of each cell of a monitor, for people who ask what an alert is about. They are in memory alone, and a
tenant's texts are for that tenant alone.
"""

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

# Characters of a text that are kept.
LONGEST = 1000
# Bytes of all texts in memory, about. Beyond that, the tenant with the most texts loses some.
_MOST_BYTES = 32 << 20
# Of a text, beside its characters.
_BESIDE = 200

# The names of a monitor, a topic and a sentiment.
Cell = tuple[str, str, str]


class Example(NamedTuple):
    """A text, and when it was observed, in nanoseconds since 1970."""

    text: str
    time_ns: int

    @property
    def size(self) -> int:
        """Bytes in memory: a character may take four."""
        return 4 * len(self.text) + _BESIDE


class Examples:
    """Texts by tenant and cell."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        # The cell that was written to last is the last one.
        self._kept: dict[str, OrderedDict[Cell, deque[Example]]] = {}
        self._bytes = Counter[str]()  # by tenant

    def add(self, tenant: str, cell: Cell, text: str, most: int) -> None:
        """Keeps a text. The cell keeps its last `most` texts."""
        cells = self._kept.setdefault(tenant, OrderedDict())
        texts = cells.setdefault(cell, deque())
        cells.move_to_end(cell)
        texts.append(new := Example(text[:LONGEST], time.time_ns()))
        self._bytes[tenant] += new.size
        if len(texts) > most:
            self._bytes[tenant] -= texts.popleft().size
        while self._bytes.total() > self._most_bytes:
            self._drop_one(max(self._bytes, key=self._bytes.__getitem__))

    def last(self, tenant: str, cell: Cell) -> Sequence[Example]:
        """Returns what is kept of a cell, the newest first."""
        cells = self._kept.get(tenant)
        return list(reversed(cells.get(cell, ()))) if cells else []

    def _drop_one(self, tenant: str) -> None:
        """Drops the oldest text of the cell to which a tenant has written nothing for the longest time."""
        cells = self._kept[tenant]
        cell, texts = next(iter(cells.items()))
        self._bytes[tenant] -= texts.popleft().size
        if not texts:
            del cells[cell]
