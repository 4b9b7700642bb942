import numpy as np
import pytest

from tuneserve.evaluation.blending import blended


def scores(dense: list[float], keyword: list[float], weight: float) -> list[float]:
    return list(blended(np.array(dense, np.float32), np.array(keyword, np.float32), weight))


def test_each_score_is_scaled_among_the_passages() -> None:
    assert scores([0.9, 0.7, 0.5], [0, 1, 4], 0.25) == pytest.approx([0.75, 0.375 + 0.0625, 0.25])


def test_how_far_cosines_are_apart_does_not_matter() -> None:
    wide, narrow = scores([0.9, 0.1], [0, 1], 0.3), scores([0.90, 0.89], [0, 1], 0.3)
    assert wide == pytest.approx(narrow)


def test_scores_that_are_all_the_same() -> None:
    assert scores([0.5, 0.5], [0, 0], 0.5) == [0.5, 0.5]
    assert scores([0.0], [0.0], 0.5) == [0]
    assert scores([], [], 0.5) == []
