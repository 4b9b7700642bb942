"""Token predictions to labelled spans, and code point offsets to other units. Plain numbers in, plain spans out.

Labels are IOB2 (B-X, I-X, O) or bare (X, O). Adjacent pieces of one label are one span unless the second begins
with B-, as in the pipelines of transformers.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
    scores: NDArray[np.float32],
    offsets: Sequence[tuple[int, int]],
    words: Sequence[int | None],
    labels: Sequence[str],
    aggregation: Aggregation,
) -> list[Span]:
    """Returns the spans of one text, in order. `scores` is (tokens, labels); special tokens have no word."""
    tokens = [
        (word, Piece(row, start, end))
        for row, (start, end), word in zip(scores, offsets, words, strict=True)
        if word is not None
    ]
    if aggregation == "simple":
        pieces = [piece for _, piece in tokens]
    else:
        by_word: dict[int, list[Piece]] = {}
        for word, piece in tokens:
            by_word.setdefault(word, []).append(piece)
        pieces = [_merge(group, aggregation) for group in by_word.values()]
    return _group(pieces, labels)


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


def _group(pieces: Sequence[Piece], labels: Sequence[str]) -> list[Span]:
    groups: list[tuple[str, list[tuple[Piece, float]]]] = []
    for piece in pieces:
        best = int(piece.scores.argmax())
        begins, label = _split(labels[best])
        entry = (piece, float(piece.scores[best]))
        if groups and groups[-1][0] == label and not begins:
            groups[-1][1].append(entry)
        else:
            groups.append((label, [entry]))
    return [
        Span(label, float(np.mean([score for _, score in group])), group[0][0].start, group[-1][0].end)
        for label, group in groups
        if label != "O"
    ]


def _split(label: str) -> tuple[bool, str]:
    if label.startswith(("B-", "I-")):
        return label.startswith("B-"), label[2:]
    return False, label


def _utf8_width(code_point: int) -> int:
    return 1 if code_point < 0x80 else 2 if code_point < 0x800 else 3 if code_point < 0x10000 else 4


def _utf16_width(code_point: int) -> int:
    return 1 if code_point < 0x10000 else 2
