import numpy as np

from tuneserve.benchmarks.answers import quality
from tuneserve.evaluation.searched import Searched
from tuneserve.v1 import answer_pb2 as pb


def searched(dense: list[float], keyword: list[float]) -> Searched:
    """The second of three passages answers."""
    return Searched(["a", "b", "c"], np.array(dense, np.float32), np.array(keyword, np.float32), {"b"})


def test_both_kinds_together_are_compared_with_the_better_one():
    by_words, by_vectors = searched([0.9, 0.8, 0.1], [0, 5, 1]), searched([0.1, 0.9, 0.2], [1, 0, 3])
    row = quality.both("faq", [by_words, by_vectors, by_vectors, by_words] * 20)
    assert row["questions"] == 80
    assert row["both"] > max(row["vectors"], row["words"])
    assert row["not_worse"]
    assert row["change"][1] > 0
    # What one half chooses leads the other one astray, as it does where one kind alone is chosen.
    row = quality.both("faq", [searched([0.9, 0.8, 0], [0, 5, 1]), searched([0.99, 1, 0], [9, 0, 0])] * 40)
    assert (row["both"] < row["vectors"] < 1, row["not_worse"]) == (True, True)
    assert len(quality.table([row], {"zaragoza-en, tuned": 0.8}).rows) == 2


def test_ranked_passages_count_in_their_order():
    responses = [pb.SearchResponse(passages=[pb.Passage(document_id=id_) for id_ in ids]) for ids in ("12", "21", "33")]
    assert 0 < quality.of_ranked(responses[:2], [("?", 1), ("?", 2)]) == 1
    assert quality.of_ranked(responses, [("?", 1), ("?", 2), ("?", 4)]) == np.float64(2 / 3)
