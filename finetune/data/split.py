"""Which rows are held out, drawn by their places: the rows themselves stay on disk.

The same rows and seed always give the same places in the same order. Rows of one group, and conversations of which one
goes on from where another ends, are drawn together.
"""

import random
from array import array
from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tuneserve.finetune.data.spool import Places, Spool
from tuneserve.rows import DIGEST, Row, digest, earlier_inputs, input_key
from tuneserve.seen import Digests

GROUP = "group"  # what a row that is added says of its group, if it is of one; not kept


class Table:
    """Rows on disk, and in memory what tells them apart: 24 bytes each, and 24 for each group and earlier answer.

    Rows are added first, and then drawn.
    """

    def __init__(self) -> None:
        self.rows = Spool()
        self.label_sets: dict[tuple[str, ...], int] = {}  # all that rows have, numbered
        self._inputs = bytearray()
        self._labels = array("d")  # the number of a row's labels, or the number that is its label
        self._groups, self._grouped = bytearray(), array("q")  # digests of groups, and the row that is of each
        self._earlier, self._longer = bytearray(), array("q")  # of what a row's earlier answers answer, and that row

    def add(self, rows: Iterable[Row]) -> Places:
        """Returns the places that the rows got. Raises StepFailed when the disk is full."""
        start = len(self.rows)
        self.rows.extend(map(self._noted, rows))
        return np.arange(start, len(self.rows))

    def _noted(self, row: Row) -> Row:
        # Each row before it has its labels noted.
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
        """Returns the places of rows whose input is in none of the others."""
        return places[np.isin(self._first[places], self._first[others], invert=True)]

    def apart(self, places: Places, others: Places) -> Places:
        """Returns the places of rows that have no input of the others, and are not drawn together with any of them."""
        return self.without(places[np.isin(self._units[places], self._units[others], invert=True)], others)

    def among(self, places: Places, digests: Digests) -> NDArray[np.bool_]:
        """Returns which rows have an input of these digests."""
        return np.isin(np.frombuffer(self._inputs, digests.dtype), digests)[places]

    def known(self, places: Places, trained: Digests, held_out: Digests) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Returns which rows an earlier run held out, and which are new: drawn together with none that it had.

        `trained`, `held_out`: digests of its inputs. The others were trained on, or belong to what was.
        """
        inputs = np.frombuffer(self._inputs, held_out.dtype)
        held, learned = np.isin(inputs, held_out), np.isin(inputs, trained)
        held_units, learned_units = (np.isin(self._units, self._units[some]) for some in (held, learned))
        # What is new of a group is where the group is.
        held |= held_units & ~learned_units
        return held[places], ~(held_units | learned_units)[places]

    def stratified(self, shuffled: Places, share: float) -> tuple[Places, Places]:
        """Splits so that each label has about its share on both sides, however rare.

        Rows in order of their labels, then every n-th of them, is a stratified sample of exactly the wanted size. Where
        rows are drawn together, that holds of the first ones of them, and the size is right on average.
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
        """For each row the first one of those that are drawn together with it."""
        rows = np.arange(len(self.rows))
        if not self._grouped and not self._longer:
            return rows
        # The nodes of a graph are rows and, after them, groups. A conversation that others go on from is a row itself.
        first = first_of_input(self._inputs + self._groups + self._earlier)
        own, groups, begun = np.split(first, [len(rows), len(rows) + len(self._grouped)])
        known = begun < len(rows)
        edges = [
            (np.array(self._grouped), groups),
            (np.array(self._longer)[known], begun[known]),
            # Rows of one input are no unit by that; where others go on from it, they are.
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
    """Returns for each row the place of the first one with its input."""
    _, first, same = np.unique(np.frombuffer(digests, f"S{DIGEST}"), return_index=True, return_inverse=True)
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
