"""Splits long texts into overlapping windows, and combines the model's outputs for the windows. Numbers only.

A window is a run of the text's own tokens, with the special tokens that a whole text has before and after it.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tuneserve.server.engine.interface import Encoded
from tuneserve.server.text.tokenizer import Tokens

Pooling = Literal["mean", "max"]


class Window(NamedTuple):
    """A window: its tokens for the engine, and the range of the text's tokens that it covers."""

    encoded: Encoded
    start: int
    end: int


def count(tokens: Tokens, max_length: int, overlap: int) -> int:
    """Returns how many windows `split` would make."""
    head, tail = _special(tokens)
    body, room = tokens.length - head - tail, max(max_length - head - tail, 1)
    if tokens.length <= max_length:
        return 1
    return -((body - room) // -_step(room, overlap)) + 1


def split(tokens: Tokens, max_length: int, overlap: int) -> list[Window]:
    """Returns windows of at most `max_length` tokens that share at least `overlap` tokens with their neighbours; one
    window if the text fits.
    """
    if tokens.length <= max_length:
        return [Window(tokens.encoded, 0, tokens.length)]
    ids = list(tokens.encoded.token_ids)
    head, tail = _special(tokens)
    last = len(ids) - tail
    room = max(max_length - head - tail, 1)
    # The last window is moved back, so that it is as long as the others.
    starts = [*range(head, last - room, _step(room, overlap)), last - room]
    return [
        Window(Encoded([*ids[:head], *ids[start : start + room], *ids[last:]]), start, start + room) for start in starts
    ]


def pool(rows: Sequence[NDArray[np.float32]], pooling: Pooling) -> NDArray[np.float32]:
    """Combines one row for each window into one row for the text."""
    joined = np.max(rows, axis=0) if pooling == "max" else np.mean(rows, axis=0)
    return np.asarray(joined, dtype=np.float32)


def stitch(tokens: Tokens, windows: Sequence[Window], rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Combines the (tokens, labels) of a text's windows into those of the text: each token is taken from the window
    with the most context around it.
    """
    if len(windows) == 1:
        return rows[0]
    head, tail = _special(tokens)
    last = tokens.length - tail
    whole = np.zeros((tokens.length, rows[0].shape[-1]), dtype=np.float32)
    shown = np.full(tokens.length, -1.0)
    for window, row in zip(windows, rows, strict=True):
        places = np.arange(window.start, window.end)
        # If a window begins or ends with the text, there is no more context on that side.
        before = places - window.start if window.start > head else np.full(len(places), np.inf)
        after = window.end - 1 - places if window.end < last else np.full(len(places), np.inf)
        surroundings = np.minimum(before, after)
        better = surroundings > shown[places]
        whole[places[better]] = row[head : head + len(places)][better]
        shown[places[better]] = surroundings[better]
    return whole


def _special(tokens: Tokens) -> tuple[int, int]:
    """Returns the numbers of special tokens before and after the text's own."""
    head = next((index for index, word in enumerate(tokens.words) if word is not None), None)
    if head is None:
        return 0, 0
    return head, next(index for index, word in enumerate(reversed(tokens.words)) if word is not None)


def _step(room: int, overlap: int) -> int:
    return max(room - overlap, 1)
