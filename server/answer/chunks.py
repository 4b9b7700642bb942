"""Splits a text into passages at the ends of sentences, or into sentences. Knows tokens by their offsets alone."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

# The end of a sentence: a sign that needs a space after it, because it is also in numbers and abbreviations; one that
# needs none, of scripts without spaces; or a line break. With what closes the sentence, and the white space after it. A
# run of signs is looked at from its beginning alone: from each of them, a text of dots would take minutes.
_END = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’»)\]]*\s+|[。！？｡।॥]+[\"'”’»）」』】]*\s*|\n\s*")


def split(text: str, tokens: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Returns the passages of a text as (start, end) in code points: as many whole sentences as have at most `most`
    tokens. A longer sentence is split between words, a longer word between tokens. No passage is blank.

    `tokens` are the offsets of the text's tokens, in order.
    """
    starts = [start for start, end in tokens if start < end]
    passages: list[tuple[int, int]] = []
    first = 0
    last = 0  # where the sentences end that fit
    for end in _ends(text):
        while bisect_left(starts, end) - bisect_left(starts, first) > most:
            if last == first:
                last = _between_words(text, starts, first, most)
            passages.append((first, last))
            first = last
        last = end
    passages.append((first, last))
    trimmed = (_trimmed(text, *one) for one in passages)
    return [one for one in trimmed if one[0] < one[1]]


def sentences(text: str) -> list[tuple[int, int]]:
    """Returns the sentences of a text as (start, end) in code points, without the white space between them."""
    ends = list(_ends(text))
    found = (_trimmed(text, start, end) for start, end in pairwise([0, *ends]))
    return [one for one in found if one[0] < one[1]]


def _ends(text: str) -> Iterator[int]:
    yield from (match.end() for match in _END.finditer(text) if match.end() < len(text))
    yield len(text)


def _between_words(text: str, starts: Sequence[int], first: int, most: int) -> int:
    """Returns the last place, at most `most` tokens after `first`, where a word begins; if none does, a token."""
    index = bisect_left(starts, first)
    for start in reversed(starts[index + 1 : index + most + 1]):
        # Some tokens begin with the space before their word.
        if start > first and (text[start].isspace() or text[start - 1].isspace()):
            return start
    # A character that the vocabulary lacks has several tokens at one place.
    place = max(index + most, bisect_right(starts, first))
    return starts[place] if place < len(starts) else len(text)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())
