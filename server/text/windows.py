"""Long texts as overlapping windows, and what the model makes of the windows back to the text. Numbers only.

A window is a piece of the text's own tokens between the special tokens that a whole text has around it.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tuneserve.server.engine.interface import Encoded
from tuneserve.server.text.tokenizer import Tokens

Pooling = Literal["mean", "max"]


class Window(NamedTuple):
    """A piece of a text: what the engine sees, and which tokens of the text it shows."""

    encoded: Encoded
    start: int
    end: int


def count(tokens: Tokens, max_length: int, overlap: int) -> int:
    """Returns how many windows `cut` would make."""
    head, tail = _special(tokens)
    body, room = tokens.length - head - tail, max(max_length - head - tail, 1)
    if tokens.length <= max_length:
        return 1
    return -((body - room) // -_step(room, overlap)) + 1


def cut(tokens: Tokens, max_length: int, overlap: int) -> list[Window]:
    """Returns windows of at most `max_length` tokens that share at least `overlap` with their neighbours; one if the
    text fits.
    """
    if tokens.length <= max_length:
        return [Window(tokens.encoded, 0, tokens.length)]
    ids = list(tokens.encoded.token_ids)
    head, tail = _special(tokens)
    last = len(ids) - tail
    room = max(max_length - head - tail, 1)
    # The last one is moved back, to show as much as the others.
    starts = [*range(head, last - room, _step(room, overlap)), last - room]
    return [
        Window(Encoded([*ids[:head], *ids[start : start + room], *ids[last:]]), start, start + room) for start in starts
    ]


def pool(rows: Sequence[NDArray[np.float32]], pooling: Pooling) -> NDArray[np.float32]:
    """Returns one row for a text from one row a window."""
    if len(rows) == 1:
        return rows[0]
    joined = np.max(rows, axis=0) if pooling == "max" else np.mean(rows, axis=0)
    return np.asarray(joined, dtype=np.float32)


def stitch(tokens: Tokens, windows: Sequence[Window], rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Returns (tokens, labels) for a text from the same of its windows: each token from the window that shows most of
    its surroundings.
    """
    if len(windows) == 1:
        return rows[0]
    head, tail = _special(tokens)
    last = tokens.length - tail
    whole = np.zeros((tokens.length, rows[0].shape[-1]), dtype=np.float32)
    shown = np.full(tokens.length, -1.0)
    for window, row in zip(windows, rows, strict=True):
        places = np.arange(window.start, window.end)
        # Where a window begins or ends with the text, there is nothing more to show on that side.
        before = places - window.start if window.start > head else np.full(len(places), np.inf)
        after = window.end - 1 - places if window.end < last else np.full(len(places), np.inf)
        surroundings = np.minimum(before, after)
        better = surroundings > shown[places]
        whole[places[better]] = row[head : head + len(places)][better]
        shown[places[better]] = surroundings[better]
    return whole


def _special(tokens: Tokens) -> tuple[int, int]:
    """How many special tokens stand before and behind the text's own."""
    head = next((index for index, word in enumerate(tokens.words) if word is not None), None)
    if head is None:
        return 0, 0
    return head, next(index for index, word in enumerate(reversed(tokens.words)) if word is not None)


def _step(room: int, overlap: int) -> int:
    return max(room - overlap, 1)
