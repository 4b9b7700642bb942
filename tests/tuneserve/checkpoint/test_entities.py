"""Spans of a text, and tags of its words or tokens."""

from itertools import accumulate, pairwise

import pytest

from tuneserve.checkpoint import entities


def test_words_become_prose_with_their_entities() -> None:
    words = ["Anna", "Berg", "(", "Rome", ")", ",", "wo", "n't", "say", '"', "Oslo", '"', "."]
    tags = ["B-PER", "I-PER", "O", "B-LOC", "O", "O", "O", "O", "O", "O", "B-LOC", "O", "O"]
    row = entities.from_words(words, tags)
    assert row["text"] == 'Anna Berg (Rome), won\'t say "Oslo".'
    found = [(label, row["text"][start:end]) for label, start, end in entities.spans_of(row)]
    assert found == [("PER", "Anna Berg"), ("LOC", "Rome"), ("LOC", "Oslo")]


@pytest.mark.parametrize(
    ("spans", "offsets", "tags"),
    [
        ([("X", 0, 4), ("X", 4, 6)], [(0, 2), (2, 4), (4, 6)], ["B-X", "I-X", "B-X"]),
        # A token is of what it shares a character with, and of the first of two.
        ([("X", 1, 3), ("Y", 3, 9)], [(0, 2), (2, 4), (4, 9)], ["B-X", "I-X", "B-Y"]),
        # Special tokens have no text; white space inside an entity is of it.
        ([("X", 1, 4)], [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (0, 0)], [None, "O", "B-X", "I-X", "I-X", None]),
        # Several tokens of one character, as bytes of an emoji are.
        ([("X", 2, 3)], [(0, 1), (2, 3), (2, 3), (3, 4)], ["O", "B-X", "I-X", "O"]),
        ([], [(0, 3)], ["O"]),
    ],
)
def test_spans_become_tags(spans: list[entities.Span], offsets: list[tuple[int, int]], tags: list[str | None]) -> None:
    assert entities.tags(spans, offsets) == tags


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (["B-X", "I-X", "O"], [("X", 0, 3)]),
        (["B-X", "B-X", "I-Y"], [("X", 0, 1), ("X", 2, 3), ("Y", 4, 5)]),
        (["O", "I-X", "I-X"], [("X", 2, 5)]),
        (["X", "X", "O"], [("X", 0, 3)]),
    ],
)
def test_tags_become_spans(tags: list[str], spans: list[entities.Span]) -> None:
    assert entities.found("a b c", tags, [(0, 1), (2, 3), (4, 5)]) == spans


def test_spans_have_no_white_space_at_their_ends() -> None:
    # As tokenizers of bytes count it.
    assert entities.found("in New York\n", ["O", "B-X", "I-X", "I-X"], [(0, 2), (2, 6), (6, 11), (11, 12)]) == [
        ("X", 3, 11)
    ]
    assert entities.found("a  b", ["O", "B-X", "O"], [(0, 1), (1, 2), (2, 4)]) == []


def test_types_of_labels() -> None:
    assert entities.types(["O", "B-PER", "I-PER", "LOC", "B-B-cell"]) == ["PER", "LOC", "B-cell"]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["in", " Par", "is", ",", " U", ".", "S", "."], ["in", " Paris", ",", " U", ".", "S", "."]),
        (["@an", "na", "_x", "é", "\u0301", "7"], ["@anna", "_xé\u03017"]),
        # Where words have no spaces each token is one.
        (["ノル", "ウェー", "の", "京", "iPh", "one", "で"], ["ノル", "ウェー", "の", "京", "iPhone", "で"]),
        (["हि", "न्दी", " 서", "울", "에"], ["हिन्दी", " 서울에"]),
    ],
)
def test_words_of_tokens(tokens: list[str], words: list[str]) -> None:
    text = "".join(tokens)
    ends = list(accumulate(map(len, tokens), initial=0))
    found = entities.words(text, list(pairwise(ends)))
    assert ["".join(tokens[first:last]) for first, last in found] == words


def test_tokens_of_one_character_are_one_word() -> None:
    assert entities.words("a🙂b", [(0, 1), (1, 2), (1, 2), (2, 3)]) == [(0, 1), (1, 3), (3, 4)]
    assert entities.words("", []) == []
