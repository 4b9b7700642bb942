import numpy as np
import pytest

from tuneserve.evaluation.searched import Searched, fitted, hits, measured, ordered
from tuneserve.v1 import answer_pb2 as pb


def found(*passages: tuple[str, float, float], answers: tuple[str, ...] = ("right",)) -> Searched:
    response = pb.SearchResponse(
        passages=[pb.Passage(document_id=id_, dense_score=dense, keyword_score=word) for id_, dense, word in passages]
    )
    return Searched.of(response, answers)


BY_VECTORS = found(("right", 0.9, 0.0), ("other", 0.5, 3.0), ("third", 0.1, 0.0))
BY_WORDS = found(("other", 0.9, 0.0), ("right", 0.8, 3.0), ("third", 0.1, 0.0))


def test_the_weight_that_fits_is_between() -> None:
    assert BY_VECTORS.right(0.0) == [True, False, False]
    assert BY_VECTORS.right(1.0) == [False, True, False]
    assert fitted([BY_VECTORS]) == 0.0
    weight = fitted([BY_VECTORS, BY_WORDS])
    assert 0 < weight < 0.5
    metrics, rows = measured([BY_VECTORS, BY_WORDS], weight)
    assert (metrics["ndcg@10"], rows) == (1.0, [[1.0, 1.0]] * 2)
    assert measured([BY_WORDS], 0.0)[0]["mrr@10"] == pytest.approx(0.5)
    assert fitted([BY_WORDS], (0.0, 1.0)) == 1.0


def test_a_document_counts_by_its_best_passage() -> None:
    assert hits(["a", "a", "b", "a", "c"], {"b", "c"}) == [False, True, True]
    assert len(hits([str(number) for number in range(20)], {"1"})) == 10


def test_a_query_that_found_nothing() -> None:
    assert measured([found()], 0.3)[0]["ndcg@10"] == 0.0
    assert np.isfinite(fitted([found()]))


def test_passages_in_the_order_of_a_weight() -> None:
    passages = [
        pb.Passage(document_id=id_, dense_score=1 - place, keyword_score=place) for place, id_ in enumerate("ab")
    ]
    response = pb.SearchResponse(passages=passages)
    assert [one.document_id for one in ordered(response, 0.0)] == ["a", "b"]
    assert [one.document_id for one in ordered(response, 1.0)] == ["b", "a"]
    assert ordered(pb.SearchResponse(), 0.5) == []
