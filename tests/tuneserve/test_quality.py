"""Metrics whose arithmetic is ours."""

import pytest

from tuneserve import quality


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


def test_answers_agree_by_their_words() -> None:
    found = quality.answers(["Paris", "the Blue, blue sky", ""], ["In Paris.", "Blue sky", "call()"])
    # Of what expects no words nothing is compared.
    assert found == {"token_f1": pytest.approx((2 / 3 + 4 / 5) / 2), "exact_match": 0.0}
    assert quality.answers(["A cat!"], ["cat"]) == {"token_f1": 1.0, "exact_match": 1.0}
    assert quality.answers(["cat"], [""]) == {"token_f1": 0.0, "exact_match": 0.0}
