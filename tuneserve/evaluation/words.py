"""Words of texts in any script, to tell which of them two texts share. The server uses them, too: no dictionaries."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Set

# Scripts that are written without spaces, and Hangul, which joins particles to words: pairs of characters are words.
_PAIRED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff"
_RUN = re.compile(rf"[{_PAIRED}]+|\d+(?:[.,:]\d+)*|[^\W\d{_PAIRED}]+")
_IS_PAIRED = re.compile(f"[{_PAIRED}]")
# Of a word, its beginning: most endings of most languages come after it.
_STEM = 5


def words(text: str) -> frozenset[str]:
    """Returns the words of a text: their first letters, numbers whole, and pairs of characters."""
    return frozenset(_words(text))


def _words(text: str) -> Iterator[str]:
    for run in _RUN.findall(text.casefold()):
        if run[0].isdigit():
            yield run
        elif _IS_PAIRED.match(run):
            yield from (run[at : at + 2] for at in range(max(1, len(run) - 1)))
        else:
            yield run[:_STEM]


class Rarity:
    """What words tell among some texts: the fewer of these have a word, the more. Short words tell less: most of them
    are grammar.
    """

    def __init__(self, texts: Iterable[Set[str]]) -> None:
        """The texts are given as their words."""
        given = list(texts)
        self._counts = Counter(word for one in given for word in one)
        self._texts = len(given)

    def of(self, some: Iterable[str]) -> float:
        """Returns the sum for some words. One that no text has counts as if a single text had it."""
        return sum(math.log((self._texts + 1) / self._counts.get(word, 1)) * _length(word) for word in some)

    def share(self, asked: Set[str], said: Set[str]) -> float:
        """Returns how much of the words that are asked for is among those that are said, 0 to 1."""
        total = self.of(asked)
        return self.of(asked & said) / total if total else 0.0


def _length(word: str) -> float:
    is_short = len(word) < _STEM and not word[0].isdigit() and not _IS_PAIRED.match(word)
    return len(word) / _STEM if is_short else 1.0
