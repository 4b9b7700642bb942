"""An answer without a generation model: whole sentences of the best passages, as they stand there."""

from collections.abc import Sequence
from typing import NamedTuple

from tuneserve.evaluation import words
from tuneserve.server.answer import chunks
from tuneserve.v1 import answer_pb2 as pb

# Sentences of an answer, at most, and the passages that they come from.
_SENTENCES, _PASSAGES = 3, 3
# A sentence of another place must have so much of the query that is not said yet.
_LEAST = 0.2


class Quote(NamedTuple):
    """A part of a passage's text."""

    passage: int  # its place among the passages
    start: int  # in code points
    end: int


def extracted(query: str, passages: Sequence[pb.Passage]) -> list[Quote]:
    """Returns the sentences that answer a query, in order; one at least. The passages are the best first.

    The first one is of the best passage. Others have words of the query that nothing had before; if none does, the
    answer goes on where it is.
    """
    texts = [one.text for one in passages]
    found = [Quote(place, *span) for place in range(len(texts[:_PASSAGES])) for span in chunks.sentences(texts[place])]
    said = {one: words.words(texts[one.passage][one.start : one.end]) for one in found}
    asked, rarity = words.words(query), words.Rarity(said.values())
    least = _LEAST * rarity.of(asked & frozenset().union(*said.values()))

    def adds(one: Quote, missing: frozenset[str]) -> float:
        return rarity.of(said[one] & missing)

    first = max((one for one in found if one.passage == 0), key=lambda one: adds(one, asked))
    chosen, missing = [first], asked - said[first] - words.words(passages[0].title)
    while len(chosen) < _SENTENCES:
        rest = [one for one in found if one not in chosen]
        best = max(rest, key=lambda one: adds(one, missing), default=None)
        if best is None or adds(best, missing) < least:
            # Nothing has more of what is asked for; what follows explains it.
            best = next((one for one in rest if one.passage == 0 and one > chosen[-1]), None)
        if best is None:
            break
        chosen.append(best)
        missing -= said[best]
    return sorted(chosen)
