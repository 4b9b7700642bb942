"""Which passages answer a query, and which are found."""

import numpy as np
import pytest

from tuneserve.evaluation import retrieval
from tuneserve.evaluation.retrieval import Library

ROWS = [
    {"query": "a", "positive": "A", "negatives": ["B", "C"]},
    {"query": "b", "positive": "B"},
    {"query": "a", "positive": "D"},
]


def test_the_passages_of_all_rows_are_searched_each_once() -> None:
    library = Library.of(ROWS)
    assert library.queries == ["a", "b", "a"]
    assert library.passages == ["A", "B", "C", "D"]
    # Both passages of a query answer it, in each of its rows.
    assert library.answers == [{0, 3}, {1}, {0, 3}]
    assert library.relevant == [2, 1, 2]
    assert library.own == [{0, 1, 2, 3}, {1}, {0, 3}]
    assert library.right([[0, 1], [2, 1], [3, 0]]) == [[True, False], [False, True], [True, True]]


def test_a_shortlist_has_the_own_passages_and_the_most_similar_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "SHORT", 2)
    rows = [
        {"query": "the sea", "positive": "ships", "negatives": ["harbours", "sails"]},
        {"query": "a red house", "positive": "bricks"},
        {"query": "shipping", "positive": "houses are red"},
    ]
    library = Library.of(rows)
    # In the order of the passages, which tells nothing about which is right.
    assert library.shortlists == [[0, 1, 2], [3, 4], [0, 4]]
    assert list(library.pairs)[3:] == [
        ("a red house", "bricks"),
        ("a red house", "houses are red"),
        ("shipping", "ships"),
        ("shipping", "houses are red"),
    ]
    assert library.ranked([0.1, 0.3, 0.2, 0.5, 0.5, 1, 2]) == [[1, 2, 0], [3, 4], [4, 0]]
    assert library.by_letters == [[0, 2, 1], [4, 3], [0, 4]]


def test_the_nearest_by_cosine_come_first() -> None:
    passages = np.array([[9.0, 9], [0.1, 0], [-1, 0], [0, 5]])
    assert retrieval.search(np.array([[1.0, 0.1], [0, 0]]), passages) == [[1, 0, 3, 2], [0, 1, 2, 3]]
    many = retrieval.search(np.ones((130, 2)), np.tile(passages, (5, 1)))
    assert len(many) == 130
    # Of equal ones, the first.
    assert many[129] == [0, 4, 8, 12, 16, 1, 3, 5, 7, 9]
