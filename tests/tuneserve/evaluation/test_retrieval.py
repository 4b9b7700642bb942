"""Which passages answer a query, and which are found."""

import numpy as np

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
    assert library.right([[0, 1], [2, 1], [3, 0]]) == [[True, False], [False, True], [True, True]]


def test_the_nearest_by_cosine_come_first() -> None:
    passages = np.array([[9.0, 9], [0.1, 0], [-1, 0], [0, 5]])
    assert retrieval.search(np.array([[1.0, 0.1], [0, 0]]), passages) == [[1, 0, 3, 2], [0, 1, 2, 3]]
    many = retrieval.search(np.ones((130, 2)), np.tile(passages, (5, 1)))
    assert len(many) == 130
    # Of equal ones, the first.
    assert many[129] == [0, 4, 8, 12, 16, 1, 3, 5, 7, 9]
