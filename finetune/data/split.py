"""Chooses the rows that are held out, by their places: the rows themselves stay on disk.

The same rows and seed always give the same places in the same order. Rows of one group are drawn together, and so are
conversations of which one continues another.
"""

import random
from array import array
from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tuneserve.checkpoint.rows import DIGEST, Row, digest, earlier_inputs, input_key
from tuneserve.checkpoint.seen import Digests
from tuneserve.finetune.data.disk_rows import DiskRows, Places

GROUP = "group"  # the key of a row's group, if it has one; removed when the row is added


class Table:
    """Rows on disk, with digests in memory: 24 bytes a row, and 24 more for its group and each of its earlier answers.

    All rows are added before any are drawn.
    """

    def __init__(self) -> None:
        self.rows = DiskRows()
        self.label_sets: dict[tuple[str, ...], int] = {}  # every set of labels that occurs, and its number
        self._inputs = bytearray()
        self._labels = array("d")  # the number of each row's set of labels; for regression, the label itself
        self._groups, self._grouped = bytearray(), array("q")  # digests of groups, and the rows that belong to them
        self._earlier, self._longer = bytearray(), array("q")  # digests of inputs of earlier answers, and their rows

    def add(self, rows: Iterable[Row]) -> Places:
        """Adds rows and returns their places. Raises StepFailed when the disk is full."""
        start = len(self.rows)
        self.rows.extend(map(self._noted, rows))
        return np.arange(start, len(self.rows))

    def _noted(self, row: Row) -> Row:
        # There is one entry of `_labels` for each earlier row.
        place = len(self._labels)
        if group := row.pop(GROUP, None):
            self._groups += digest(group)
            self._grouped.append(place)
        for key in earlier_inputs(row):
            self._earlier += digest(key)
            self._longer.append(place)
        self._inputs += digest(input_key(row))
        label, labels = row.get("label"), tuple(sorted(set(counted_labels(row))))
        number = label if isinstance(label, float) else self.label_sets.setdefault(labels, len(self.label_sets))
        self._labels.append(number)
        return row

    def without(self, places: Places, others: Places) -> Places:
        """Returns the places of rows whose input is not among those of `others`."""
        return places[np.isin(self._first[places], self._first[others], invert=True)]

    def apart(self, places: Places, others: Places) -> Places:
        """Returns the places of rows that share no input with `others`, and are not drawn together with any of them."""
        return self.without(places[np.isin(self._units[places], self._units[others], invert=True)], others)

    def among(self, places: Places, digests: Digests) -> NDArray[np.bool_]:
        """Returns a mask: which rows have an input with one of these digests."""
        return np.isin(np.frombuffer(self._inputs, digests.dtype), digests)[places]

    def known(self, places: Places, trained: Digests, held_out: Digests) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Returns two masks: rows that an earlier run held out, and rows that are new to it.

        `trained`, `held_out`: digests of the earlier run's inputs. New rows are not drawn together with any of these.
        Rows of neither mask were trained on, or are drawn together with rows that were.
        """
        inputs = np.frombuffer(self._inputs, held_out.dtype)
        held, learned = np.isin(inputs, held_out), np.isin(inputs, trained)
        held_units, learned_units = (np.isin(self._units, self._units[some]) for some in (held, learned))
        # New rows of a group that was held out are held out, too.
        held |= held_units & ~learned_units
        return held[places], ~(held_units | learned_units)[places]

    def stratified(self, shuffled: Places, share: float) -> tuple[Places, Places]:
        """Splits so that each label has about the same share on both sides, even a rare one.

        Taking every n-th of the rows sorted by label gives a stratified sample of exactly the wanted size. Of rows that
        are drawn together, the first one's label counts, and the size is right on average.
        """
        units = self._units[shuffled]
        firsts = np.sort(np.unique(units, return_index=True)[1])
        order = np.argsort(self._strata[shuffled[firsts]], kind="stable")
        wanted = round(len(order) * share)
        drawn = firsts[order[((np.arange(wanted) + 0.5) * len(order) / wanted).astype(int)]]
        chosen = np.isin(units, units[drawn])
        return shuffled[~chosen], shuffled[chosen]

    @cached_property
    def _first(self) -> Places:
        return first_of_input(self._inputs)

    @cached_property
    def _units(self) -> Places:
        """For each row, the first of the rows that are drawn together with it."""
        rows = np.arange(len(self.rows))
        if not self._grouped and not self._longer:
            return rows
        # The nodes of the graph are rows, followed by groups. A conversation that others continue is a row itself.
        first = first_of_input(self._inputs + self._groups + self._earlier)
        own, groups, begun = np.split(first, [len(rows), len(rows) + len(self._grouped)])
        known = begun < len(rows)
        edges = [
            (np.array(self._grouped), groups),
            (np.array(self._longer)[known], begun[known]),
            # Rows with the same input are drawn together only if another conversation continues them.
            (rows, np.where(np.isin(own, begun), own, rows)),
        ]
        start, end = (np.concatenate(ends) for ends in zip(*edges, strict=True))
        graph = coo_array((np.ones(len(start), bool), (start, end)), shape=(len(first), len(first)))
        units = connected_components(graph, directed=False)[1][: len(rows)]
        _, firsts, same = np.unique(units, return_index=True, return_inverse=True)
        found: Places = firsts[same]
        return found

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


def first_of_input(digests: bytes | bytearray) -> Places:
    """Returns for each row the place of the first row with the same input."""
    _, first, same = np.unique(np.frombuffer(digests, f"S{DIGEST}"), return_index=True, return_inverse=True)
    found: Places = first[same]
    return found


def counted_labels(row: Row) -> list[str]:
    """The labels of a row that statistics count: its label or labels, the type of each entity, or a thumb."""
    if "entities" in row:
        return [one["label"] for one in row["entities"]]
    if "labels" in row:
        return list(row["labels"])
    return [str(row["label"])] if isinstance(row.get("label"), str | bool) else []


def shuffled(places: Places, chance: random.Random) -> Places:
    """Returns the places in the order that `chance.shuffle` gives a list of the same length."""
    order = array("q", range(len(places)))
    chance.shuffle(order)
    return places[np.frombuffer(order, np.int64)]
