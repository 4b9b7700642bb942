"""Which rows are held out, drawn by their places: the rows themselves stay on disk.

The same rows and seed always give the same places in the same order.
"""

import hashlib
import random
from array import array
from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tuneserve.finetune.spool import Places, Spool
from tuneserve.rows import Row, input_key

_DIGEST = 16  # bytes


class Table:
    """Rows on disk, and in memory what tells them apart: 24 bytes each. Rows are added first, and then drawn."""

    def __init__(self) -> None:
        self.rows = Spool()
        self.label_sets: dict[tuple[str, ...], int] = {}  # all that rows have, numbered
        self._inputs = bytearray()
        self._labels = array("d")  # the number of a row's labels, or the number that is its label

    def add(self, rows: Iterable[Row]) -> Places:
        """Returns the places that the rows got. Raises StepFailed when the disk is full."""
        start = len(self.rows)
        self.rows.extend(map(self._noted, rows))
        return np.arange(start, len(self.rows))

    def _noted(self, row: Row) -> Row:
        self._inputs += digest(row)
        label, labels = row.get("label"), tuple(sorted(set(counted_labels(row))))
        number = label if isinstance(label, float) else self.label_sets.setdefault(labels, len(self.label_sets))
        self._labels.append(number)
        return row

    def without(self, places: Places, others: Places) -> Places:
        """Returns the places of rows whose input is in none of the others."""
        return places[np.isin(self._first[places], self._first[others], invert=True)]

    def stratified(self, shuffled: Places, share: float) -> tuple[Places, Places]:
        """Splits so that each label has about its share on both sides, however rare.

        Rows in order of their labels, then every n-th of them, is a stratified sample of exactly the wanted size.
        """
        order = np.argsort(self._strata[shuffled], kind="stable")
        wanted = round(len(order) * share)
        chosen = np.zeros(len(order), bool)
        chosen[order[((np.arange(wanted) + 0.5) * len(order) / wanted).astype(int)]] = True
        return shuffled[~chosen], shuffled[chosen]

    @cached_property
    def _first(self) -> Places:
        return first_of_input(self._inputs)

    @cached_property
    def _strata(self) -> NDArray[np.float64]:
        found = np.frombuffer(self._labels)
        if not self.label_sets:
            return found
        ranks = np.empty(len(self.label_sets))
        for rank, labels in enumerate(sorted(self.label_sets)):
            ranks[self.label_sets[labels]] = rank
        strata: NDArray[np.float64] = ranks[found.astype(int)]
        return strata


def digest(row: Row) -> bytes:
    """Returns what stands for a row's input."""
    return hashlib.blake2b(input_key(row).encode(), digest_size=_DIGEST).digest()


def first_of_input(digests: bytes | bytearray) -> Places:
    """Returns for each row the place of the first one with its input."""
    _, first, same = np.unique(np.frombuffer(digests, f"S{_DIGEST}"), return_index=True, return_inverse=True)
    found: Places = first[same]
    return found


def counted_labels(row: Row) -> list[str]:
    """The labels of a row that count: its label or labels, or the type of each of its entities."""
    if "entities" in row:
        return [one["label"] for one in row["entities"]]
    if "labels" in row:
        return list(row["labels"])
    return [row["label"]] if isinstance(row.get("label"), str) else []


def shuffled(places: Places, chance: random.Random) -> Places:
    """Returns the places as a list of as many would be shuffled."""
    order = array("q", range(len(places)))
    chance.shuffle(order)
    return places[np.frombuffer(order, np.int64)]
