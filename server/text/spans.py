"""Token predictions to labelled spans, and code point offsets to other units. Plain numbers in, plain spans out.

tuneserve.checkpoint.entities decides which labels make one span. Work on each token is done in NumPy, because a call
may have half a million tokens; what NumPy can't do is done for some of them at a time.
"""

from collections.abc import Generator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tuneserve.checkpoint import entities

Aggregation = Literal["simple", "first", "average", "max"]
Unit = Literal["code_point", "utf8", "utf16"]

# Tokens or spans between two steps of a generator: some milliseconds.
STEP = 1 << 12


class Span(NamedTuple):
    """A labelled part of the text."""

    label: str
    score: float
    start: int
    end: int


def find(
    text: str,
    scores: NDArray[np.float32],
    offsets: Sequence[tuple[int, int]],
    words: Sequence[int | None],
    labels: Sequence[str],
    aggregation: Aggregation,
) -> Generator[None, None, list[Span]]:
    """Returns the spans of one text, in order, without white space at their ends; in steps of some milliseconds.

    `scores` is (tokens, labels); special tokens have no word.
    """
    places, own = np.empty((len(offsets), 2), np.int64), np.empty(len(offsets), bool)
    for start in range(0, len(offsets), STEP):
        some = slice(start, start + STEP)
        places[some] = offsets[some]
        own[some] = [word is not None for word in words[some]]
        yield
    own &= places[:, 0] < places[:, 1]
    scores, places = scores[own], places[own]
    yield
    if aggregation != "simple" and len(places):
        firsts = yield from _words(text, places)
        scores, places = _merge(scores, firsts, aggregation), _joined(places, firsts)
        yield
    best = scores.argmax(axis=1) if len(scores) else np.zeros(0, np.int64)
    yield
    kinds, firsts, ends = _groups(best, labels)
    yield
    if not len(firsts):
        return []
    # Sums from each first to its end; the sums between an end and the next first are dropped. The last end needs a
    # zero.
    chosen = np.append(scores[np.arange(len(best)), best].astype(np.float64), 0.0)
    means = np.add.reduceat(chosen, np.column_stack((firsts, ends)).ravel())[::2] / (ends - firsts)
    starts, stops = places[firsts, 0], places[ends - 1, 1]
    yield
    found: list[Span] = []
    for first in range(0, len(kinds), STEP):
        some = slice(first, first + STEP)
        columns = means[some].tolist(), starts[some].tolist(), stops[some].tolist()
        for kind, mean, start, end in zip(kinds[some], *columns, strict=True):
            span = Span(kind, mean, *entities.trimmed(text, start, end))
            if span.start < span.end:
                found.append(span)
        yield
    return found


def positions(text: str, unit: Unit) -> Sequence[int]:
    """Returns the offset, counted in `unit`, of every code point of the text and of its end."""
    if unit == "code_point" or text.isascii():
        return range(len(text) + 1)
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    # Code points from which on a character takes one unit more.
    wider = (0x80, 0x800, 0x10000) if unit == "utf8" else (0x10000,)
    at = np.zeros(len(codes) + 1, np.int64)
    np.cumsum(1 + np.searchsorted(np.array(wider, "<u4"), codes, side="right"), out=at[1:])
    # Makes Python's numbers when they are read: making all at once keeps the interpreter lock for 0.1 s.
    return at.data


def _groups(best: NDArray[np.int64], labels: Sequence[str]) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Returns type, first and end of the entities in the tokens' labels, as entities.groups does."""
    tags = [entities.split(label) for label in labels]
    types = list(dict.fromkeys(kind for _, kind in tags))
    kinds = np.array([types.index(kind) for _, kind in tags])[best]
    begins = np.array([always for always, _ in tags])[best]
    inside = kinds != types.index("O") if "O" in types else np.ones(len(best), bool)
    # A token that continues the entity of the token before it.
    goes_on = np.zeros(len(best), bool)
    goes_on[1:] = (kinds[1:] == kinds[:-1]) & ~begins[1:]
    firsts = np.flatnonzero(inside & ~goes_on)
    ends = np.flatnonzero(inside & ~np.append(goes_on[1:], False)) + 1
    return [types[kind] for kind in kinds[firsts]], firsts, ends


def _words(text: str, places: NDArray[np.int64]) -> Generator[None, None, NDArray[np.int64]]:
    """Returns the first token of each word, in steps, as entities.words does."""
    found = []
    for start in range(0, len(places), STEP):
        # Whether a token continues a word depends on the token before it alone.
        before = max(start - 1, 0)
        words = entities.words(text, [(first, end) for first, end in places[before : start + STEP].tolist()])
        found.append(before + np.array([first for first, _ in words[start - before :]], np.int64))
        yield
    return np.concatenate(found)


def _joined(places: NDArray[np.int64], firsts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the places of words from those of their tokens. Words begin at `firsts`."""
    lasts = np.append(firsts[1:], len(places)) - 1
    return np.column_stack((places[firsts, 0], places[lasts, 1]))


def _merge(scores: NDArray[np.float32], firsts: NDArray[np.int64], aggregation: Aggregation) -> NDArray[np.float32]:
    """Returns the probabilities of words from those of their tokens. Words begin at `firsts`."""
    if aggregation == "first":
        return scores[firsts]
    counts = np.diff(np.append(firsts, len(scores)))
    if aggregation == "average":
        return np.asarray(np.add.reduceat(scores, firsts) / counts[:, None], dtype=np.float32)
    surest = scores.max(axis=1)
    words = np.repeat(np.arange(len(firsts)), counts)
    most = np.flatnonzero(surest == np.maximum.reduceat(surest, firsts)[words])
    # The first of tokens with equal confidence.
    return scores[most[np.unique(words[most], return_index=True)[1]]]
