"""Converts entities between spans of a text and tags of its words or tokens.

A span is (type, start, end) in code points. Tags are IOB2 (O, B-X, I-X) or bare (O, X). Adjacent tags of one type are
one entity unless the second begins with B-, as in the pipelines of transformers.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tuneserve.checkpoint import spacing

Span = tuple[str, int, int]


def types(labels: Iterable[str]) -> list[str]:
    """Returns the entity types of a model's labels, in order."""
    return list(dict.fromkeys(split(label)[1] for label in labels if label != "O"))


def spans_of(row: dict[str, Any]) -> list[Span]:
    """Returns the entities of a row."""
    return [(one["label"], one["start"], one["end"]) for one in row["entities"]]


def from_words(
    words: Sequence[str], tags: Sequence[str], join: Callable[[Sequence[str]], spacing.Joined] = spacing.joined
) -> dict[str, Any]:
    """Returns the row of words and their tags, with the words joined by the spaces of prose."""
    text, places = join(words)
    found = [
        {"start": places[first][0], "end": places[last - 1][1], "label": kind} for kind, first, last in groups(tags)
    ]
    return {"text": text, "entities": found}


def tags(spans: Sequence[Span], offsets: Iterable[tuple[int, int]]) -> list[str | None]:
    """Returns the tag of each token, given by its offsets; None for tokens without text, such as special ones.

    A token belongs to the first entity that it shares a character with. `spans` are in order and don't overlap.
    """
    found: list[str | None] = []
    place, before = 0, -1
    for start, end in offsets:
        if start == end:
            found.append(None)
            continue
        while place < len(spans) and spans[place][2] <= start:
            place += 1
        if place < len(spans) and spans[place][1] < end:
            found.append(f"{'I' if place == before else 'B'}-{spans[place][0]}")
            before = place
        else:
            found.append("O")
    return found


def found(text: str, tags: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[Span]:
    """Returns the spans of tokens with these tags, without white space at their ends."""
    ends = [(kind, *trimmed(text, offsets[first][0], offsets[last - 1][1])) for kind, first, last in groups(tags)]
    return [span for span in ends if span[1] < span[2]]


def groups(tags: Sequence[str]) -> list[Span]:
    """Returns (type, first, end) of the entities of a sequence of tags, counted in tags."""
    found: list[Span] = []
    for place, tag in enumerate(tags):
        begins, kind = split(tag)
        if kind == "O":
            continue
        if not begins and found and found[-1][0] == kind and found[-1][2] == place:
            found[-1] = (kind, found[-1][1], place + 1)
        else:
            found.append((kind, place, place + 1))
    return found


def words(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the first token and the end of each word, counted in tokens. `offsets` are those of the tokens.

    A word is a run of tokens without a gap inside letters and digits; every other token is a word of its own, and so is
    each token in scripts without spaces. So words are the same whether a tokenizer splits texts at spaces, at
    punctuation, or nowhere.
    """
    found: list[tuple[int, int]] = []
    end = -1
    for place, (start, stop) in enumerate(offsets):
        # A start before the last end means several tokens of one character.
        if start < end or (start == end and _in_word(text[start - 1]) and _in_word(text[start])):
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
        end = stop
    return found


def _in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" and not spacing.SPACELESS.match(character)


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Returns a span without white space at its ends, which some tokenizers include in the next word."""
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return start, start + len(inside.strip())


def split(tag: str) -> tuple[bool, str]:
    """Returns whether a tag always begins an entity, and the entity's type; O for no entity."""
    return (tag[0] == "B", tag[2:]) if tag.startswith(("B-", "I-")) else (False, tag)
