"""Disk-backed rows, for data that is larger than memory: each is read from disk when it is accessed.

Memory holds 8 bytes a row, and 8 more for each place of a view. The file has no name: it disappears with the process,
however that ends. TMPDIR says which disk it is on.
"""

import os
import pickle
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tuneserve.checkpoint.rows import Row
from tuneserve.machine import disk

Places = NDArray[np.int64]


class DiskRows(Sequence[Row]):
    """Rows in the order in which they were added; each access returns a new, equal object."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        # Closed when the last reference to the rows is gone.
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])
        self.extend(rows)

    def extend(self, rows: Iterable[Row]) -> None:
        """Adds rows. Raises StepFailed when the disk is full."""
        with (
            disk.watched(Path(tempfile.gettempdir()), "free some, or let TMPDIR name a folder on another disk"),
            open(os.dup(self._file.fileno()), "ab") as file,
        ):
            for row in rows:
                self._ends.append(self._ends[-1] + file.write(pickle.dumps(row, pickle.HIGHEST_PROTOCOL)))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> "View": ...
    def __getitem__(self, place: int | slice) -> "Row | View":
        if isinstance(place, slice):
            return self.view(np.arange(*place.indices(len(self))))
        place = range(len(self))[place]
        start, end = self._ends[place : place + 2]
        row: Row = pickle.loads(os.pread(self._file.fileno(), end - start, start))
        return row

    def view(self, places: Places) -> "View":
        """Returns the rows at these places, in that order."""
        return View(self, places)


class View(Sequence[Row]):
    """Some rows, on disk or of a list, in any order; they are read when they are accessed."""

    def __init__(self, rows: Sequence[Row], places: Places) -> None:
        self._rows = rows
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> "View": ...
    def __getitem__(self, place: int | slice) -> "Row | View":
        found: Any = self._places[place]
        return View(self._rows, found) if isinstance(place, slice) else self._rows[int(found)]
