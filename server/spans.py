"""Token predictions to labelled spans, and code point offsets to other units. Plain numbers in, plain spans out.

Which labels make one span is told in tuneserve.entities.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tuneserve import entities

Aggregation = Literal["simple", "first", "average", "max"]
Unit = Literal["code_point", "utf8", "utf16"]


@dataclass(frozen=True)
class Piece:
    """A token or a word: its probabilities and where it stands, in code points."""

    scores: NDArray[np.float32]  # (labels,)
    start: int
    end: int


@dataclass(frozen=True)
class Span:
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
) -> list[Span]:
    """Returns the spans of one text, in order, without white space at their ends.

    `scores` is (tokens, labels); special tokens have no word.
    """
    pieces = [
        Piece(row, start, end)
        for row, (start, end), word in zip(scores, offsets, words, strict=True)
        if word is not None and start < end
    ]
    if aggregation != "simple":
        found_words = entities.words(text, [(piece.start, piece.end) for piece in pieces])
        pieces = [_merge(pieces[first:last], aggregation) for first, last in found_words]
    best = [int(piece.scores.argmax()) for piece in pieces]
    found = []
    for label, first, last in entities.groups([labels[one] for one in best]):
        score = float(np.mean([float(pieces[place].scores[best[place]]) for place in range(first, last)]))
        start, end = entities.trimmed(text, pieces[first].start, pieces[last - 1].end)
        if start < end:
            found.append(Span(label, score, start, end))
    return found


def convert(text: str, spans: Sequence[Span], unit: Unit) -> list[Span]:
    """Returns the spans with offsets counted in `unit` in place of code points."""
    at = positions(text, unit)
    return [Span(span.label, span.score, at[span.start], at[span.end]) for span in spans]


def positions(text: str, unit: Unit) -> Sequence[int]:
    """Returns, for every code point of the text and for its end, what comes before it, counted in `unit`."""
    if unit == "code_point" or text.isascii():
        return range(len(text) + 1)
    width = _utf8_width if unit == "utf8" else _utf16_width
    return list(itertools.accumulate((width(ord(character)) for character in text), initial=0))


def _merge(tokens: Sequence[Piece], aggregation: Aggregation) -> Piece:
    if aggregation == "first":
        scores = tokens[0].scores
    elif aggregation == "max":
        scores = max((token.scores for token in tokens), key=lambda row: float(row.max()))
    else:
        scores = np.mean([token.scores for token in tokens], axis=0)
    return Piece(scores, tokens[0].start, tokens[-1].end)


def _utf8_width(code_point: int) -> int:
    return 1 if code_point < 0x80 else 2 if code_point < 0x800 else 3 if code_point < 0x10000 else 4


def _utf16_width(code_point: int) -> int:
    return 1 if code_point < 0x10000 else 2
