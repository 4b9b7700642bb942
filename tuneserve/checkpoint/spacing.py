"""Joins words with the spaces of prose: none before a comma, after an opening bracket, inside quotes, or in scripts
without spaces.

For data that comes as words. The original spaces are not known, and are guessed by the usual English rules.
"""

import re
from collections.abc import Sequence
from itertools import accumulate

Joined = tuple[str, list[tuple[int, int]]]

# Penn Treebank's replacements of quotes and brackets.
_WRITTEN = {"``": '"', "''": '"', "-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
_OPENS = {"(", "[", "{", "“", "‘", "«", "¿", "¡", "$", "£", "€", "#", "``", "-LRB-", "-LSB-", "-LCB-"}
# Single signs only: several, like :) and ;-), are smileys.
_CLOSES = re.compile(r"""[.,!?…]+[)\]"'”’]*:?|[:;%)\]}”’»]|''|-R[RSC]B-|n['’]t|['’](s|m|d|ll|re|ve)""", re.IGNORECASE)
# Thai, Lao, Burmese, Khmer, Chinese and Japanese, with their full-width signs.
SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)


def spaced(words: Sequence[str]) -> Joined:
    """Returns words joined with one space, and the start and end of each word, in code points."""
    ends = list(accumulate(len(word) + 1 for word in words))
    return " ".join(words), [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]


def joined(words: Sequence[str]) -> Joined:
    """Returns words joined with the spaces of prose, and the start and end of each word."""
    opening, closing = _quotes(words)
    text, places, before = "", [], ""
    for place, word in enumerate(words):
        together = (
            not text
            or before in _OPENS
            or place - 1 in opening
            or place in closing
            or _CLOSES.fullmatch(word)
            or SPACELESS.match(before[-1:])
            or SPACELESS.match(word)
        )
        before, written = word, _WRITTEN.get(word, word)
        text += written if together else f" {written}"
        places.append((len(text) - len(written), len(text)))
    return text, places


def _quotes(words: Sequence[str]) -> tuple[set[int], set[int]]:
    """Returns the places of opening and of closing straight quotes; quotes open and close in turn if they are
    paired.
    """
    opening, closing = set(), set()
    for mark in ('"', "'"):
        places = [place for place, word in enumerate(words) if word == mark]
        if len(places) % 2 == 0:
            opening |= set(places[::2])
            closing |= set(places[1::2])
        elif mark == "'":
            # Unpaired, it is an apostrophe, as in "the students' rooms".
            closing |= set(places)
    return opening, closing
