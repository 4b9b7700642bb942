"""What an index keeps of a passage, what a query finds, and how much there is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Row:
    """A passage."""

    document: str
    number: int  # among the passages of its document
    digest: str  # of its whole document
    title: str
    passage: str  # the title, if there is one, a line break, and the part of the text
    start: int  # of the part in the document's text: code points, and the same in other units
    start_utf8: int
    start_utf16: int
    tags: Sequence[str]  # KEY=VALUE
    readers: Sequence[str]
    reply: str | None
    vector: NDArray[np.float32]  # of length 1


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that a query found."""

    row: Row
    keyword: float  # BM25; 0 if it was found by its vector alone


@dataclass(frozen=True, slots=True)
class Size:
    """How much a tenant has in an index."""

    documents: int
    passages: int
    fragments: int  # files that hold them
    version: int
