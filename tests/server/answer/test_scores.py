import numpy as np
import pytest

from tuneserve.server.answer.rows import Found, Row
from tuneserve.server.answer.scores import ranked, scored

QUERY = np.array([1, 0], np.float32)


def found(document: str, cosine: float, keyword: float) -> Found:
    vector = np.array([cosine, np.sqrt(1 - cosine**2)], np.float32)
    return Found(Row(document, 0, "", "", "", 0, 0, 0, [], [], None, vector), keyword)


def order(weight: float, *passages: Found) -> list[str]:
    return [one.row.document for one in scored(QUERY, passages, weight)]


def test_the_weight_decides_between_words_and_vectors():
    passages = found("near", 0.9, 0.0), found("worded", 0.8, 7.0), found("neither", 0.7, 1.0)
    assert order(0.0, *passages) == ["near", "worded", "neither"]
    assert order(1.0, *passages) == ["worded", "neither", "near"]
    best = scored(QUERY, passages, 0.25)[0]
    assert (best.row.document, best.dense, best.keyword) == ("near", pytest.approx(0.9), 0.0)
    assert best.score == pytest.approx(0.75)


def test_equal_passages_stay_in_the_same_order():
    assert order(0.5, found("b", 0.5, 1.0), found("a", 0.5, 1.0)) == ["a", "b"]
    assert scored(QUERY, [], 0.5) == []
    assert np.isfinite(scored(QUERY, [found("a", 0.0, 0.0)], 0.5)[0].score)


def test_a_ranking_model_has_the_last_word():
    passages = scored(QUERY, [found("a", 0.9, 0.0), found("b", 0.1, 0.0)], 0.0)
    assert [(one.row.document, one.score) for one in ranked(passages, [(1, 0.8), (0, 0.2)])] == [("b", 0.8), ("a", 0.2)]
