"""Metrics whose arithmetic is ours."""

import math
import random

import pytest
from sklearn.metrics import ndcg_score

from tuneserve.checkpoint import entities
from tuneserve.evaluation import quality


def test_calibration_error() -> None:
    assert quality.calibration_error([0.8] * 10, [True] * 8 + [False] * 2) == pytest.approx(0)
    assert quality.calibration_error([1.0] * 4, [True, True, True, False]) == pytest.approx(0.25)
    # Too sure in one bin, too modest in another: they don't make up for each other.
    assert quality.calibration_error([0.9] * 2 + [0.55] * 2, [False, True, True, True]) == pytest.approx(0.425)


def test_a_correlation_with_a_constant_is_none() -> None:
    assert quality.regression([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])["pearson"] == 0
    found = quality.regression([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert found["pearson"] == pytest.approx(1)
    assert found["spearman"] == pytest.approx(1)
    assert found["mean_absolute_error"] == pytest.approx(2)
    assert found["root_mean_square_error"] == pytest.approx((14 / 3) ** 0.5)


def test_searches_are_measured_by_their_best_ten() -> None:
    right = [[True] + [False] * 9, [False, True, True] + [False] * 7, [False] * 10]
    metrics, sums = quality.retrieval(right, [1, 3, 1])
    second = (1 / math.log2(3) + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2)
    assert sums == [[1.0, 1.0], [pytest.approx(second), 1.0], [0.0, 1.0]]
    assert metrics == {
        "ndcg@10": pytest.approx((1 + second) / 3),
        "mrr@10": pytest.approx(1.5 / 3),
        "recall@1": pytest.approx(1 / 3),
        "recall@10": pytest.approx((1 + 2 / 3) / 3),
    }
    # As scikit-learn counts it.
    relevance, scores = [[0, 1, 1, 0, 1]], [[5, 4, 3, 2, 1]]
    assert quality.retrieval([[False, True, True, False, True]], [3])[0]["ndcg@10"] == pytest.approx(
        ndcg_score(relevance, scores, k=10)
    )


def test_answers_agree_by_their_words() -> None:
    found = quality.answers(["Paris", "the Blue, blue sky", ""], ["In Paris.", "Blue sky", "call()"])
    # Of what expects no words nothing is compared.
    assert found == {"token_f1": pytest.approx((2 / 3 + 4 / 5) / 2), "exact_match": 0.0}
    assert quality.answers(["A cat!"], ["cat"]) == {"token_f1": 1.0, "exact_match": 1.0}
    assert quality.answers(["cat"], [""]) == {"token_f1": 0.0, "exact_match": 0.0}


def test_entities_are_right_by_type_start_and_end() -> None:
    gold = [[("PER", 0, 4), ("LOC", 8, 12)], [("LOC", 0, 3)], []]
    guess = [[("PER", 0, 4), ("LOC", 8, 13)], [("ORG", 0, 3)], [("PER", 2, 5)]]
    found = quality.token_classification(gold, guess)
    assert (found["entity_precision"], found["entity_recall"]) == (1 / 4, 1 / 3)
    assert found["entity_f1"] == pytest.approx(2 / 7)
    assert (found["PER/precision"], found["PER/recall"], found["PER/support"]) == (0.5, 1.0, 1.0)
    assert found["LOC/f1"] == found["ORG/f1"] == 0
    assert quality.token_classification([[]], [[]])["entity_f1"] == 0
    assert quality.entity_rows(gold, guess) == [[1.0, 2.0, 2.0], [0.0, 1.0, 1.0], [0.0, 1.0, 0.0]]


def test_entities_are_counted_as_seqeval_counts_them() -> None:
    """Its tags, as spans of them; strict, for others it guesses."""
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    chance = random.Random(0)
    tags = [[[chance.choice(["O", "B-A", "B-BB"]) for _ in range(9)] for _ in range(50)] for _ in range(2)]
    for row in (row for each in tags for row in each):
        for place in range(1, 9):
            if row[place - 1] != "O" and chance.random() < 0.5:
                row[place] = "I-" + row[place - 1][2:]
    report = classification_report(*tags, mode="strict", scheme=IOB2, output_dict=True)
    found = quality.token_classification(*([entities.groups(row) for row in each] for each in tags))
    for ours, theirs in (("A/", "A"), ("BB/", "BB"), ("entity_", "micro avg")):
        for name in ("precision", "recall", "f1"):
            assert found[ours + name] == pytest.approx(report[theirs][name.replace("f1", "f1-score")]), ours
    assert 0.1 < found["entity_f1"] < 0.9


def test_answers_without_spaces_agree_by_their_characters() -> None:
    found = quality.answers(["北京是中国的首都。", "東京タワー"], ["首都是北京", "東京"])
    # 5 of 8 and 5, and 2 of 5 and 2.
    assert found["token_f1"] == pytest.approx((10 / 13 + 4 / 7) / 2)
    assert quality.answers(["在2024年用GPT 4。"], ["在2024年用 GPT-4"])["exact_match"] == 0
    assert quality.answers(["在 2024 年，用GPT"], ["在2024年用“GPT”"]) == {"token_f1": 1.0, "exact_match": 1.0}
    assert quality.answers(["서울 타워"], ["서울"])["token_f1"] == pytest.approx(2 / 3)
