"""Checks what a model cites: whether a passage says what a sentence of the answer does.

By its words alone, so it is no proof: a sentence that says the opposite in the same words passes. It fails for a number
or a name that the passage does not have, and for words of which the passage has too few.
"""

import re
from collections.abc import Sequence

from tuneserve.evaluation.words import Rarity, words
from tuneserve.server.answer import chunks
from tuneserve.v1 import answer_pb2 as pb

# So much of a sentence's words is in the passage, short words counted less.
_LEAST = 0.5
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
# A capital after another word begins a name (in German, any noun).
_LATER = re.compile(r"(?<=[\w,;] )[^\W\d_]\w+")


def support(sentence: str, passage: pb.Passage) -> tuple[int, int] | None:
    """Returns the part of a passage's text that a sentence says again, as (start, end) in code points: one of its
    sentences, or all of it. None if it does not say the same.
    """
    if not _says(f"{passage.title}\n{passage.text}", sentence):
        return None
    said = words(sentence)
    parts = {span: passage.text[slice(*span)] for span in chunks.sentences(passage.text)}
    best = max(parts, key=lambda span: len(said & words(parts[span])))
    return best if _says(parts[best], sentence) else (0, len(passage.text))


def _says(text: str, sentence: str) -> bool:
    asked, said = words(sentence), words(text)
    if not _numbers(sentence) <= _numbers(text):
        return False
    names = (one for one in _LATER.findall(sentence) if one[0].isupper())
    if any(not words(name) <= said for name in names):
        return False
    return Rarity([said]).share(asked, said) >= _LEAST


def cited(text: str, markers: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], int]]:
    """Returns the sentences of an answer that cite, each with the number of a passage. `markers` are numbers by their
    places in the text; one belongs to the sentence before it.
    """
    sentences, found = chunks.sentences(text), list[tuple[tuple[int, int], int]]()
    for place, number in markers:
        before = [one for one in sentences if one[0] < place]
        if before and (before[-1], number) not in found:
            found.append((before[-1], number))
    return found


def _numbers(text: str) -> frozenset[str]:
    """Returns the numbers in a text, however their digits are grouped."""
    return frozenset(re.sub(r"\D", "", one) for one in _NUMBER.findall(text))
