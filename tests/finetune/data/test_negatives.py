"""Mined negatives: passages that look like the answer to a query, and are not."""

from pathlib import Path
from typing import Any

import pytest

from tuneserve.checkpoint.rows import Row
from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.data import negatives

ROWS: list[Row] = [
    {"query": "who opens the window", "positive": "the window is opened by anna"},
    {"query": "who opens the window", "positive": "the windows are opened by a motor"},
    {
        "query": "who closes the window",
        "positive": "the window is closed by john",
        "negatives": ["windows are of glass"],
    },
    {"query": "what is the sky", "positive": "the sky is blue"},
]


def settings(task: str, **values: Any) -> config.FinetuneConfig:
    given = {"task": task, "base_model": "org/model", "train": "d.jsonl", "output": "out"}
    return config.parse(given | values, Path())


def mined(rows: list[Row], task: str = "ranking", **values: Any) -> list[Row]:
    return list(negatives.mined(rows, settings(task, **values)))


def test_the_most_similar_passages_that_are_no_answers() -> None:
    found = mined(ROWS, mined_negatives=1)
    # The other answer to the same query looks more like it, but is right.
    assert found[0] == ROWS[0] | {"negatives": ["the window is closed by john"]}
    assert found[1] == ROWS[1] | {"negatives": ["the window is closed by john"]}
    # The row's own ones stay, and are not taken twice.
    assert found[2] == ROWS[2] | {"negatives": ["windows are of glass", "the window is opened by anna"]}
    assert mined(ROWS, mined_negatives=1) == found
    assert [len(row["negatives"]) for row in mined(ROWS, mined_negatives=9)] == [3, 3, 4, 4]


def test_ranking_mines_by_default() -> None:
    assert [len(row["negatives"]) for row in mined(ROWS)] == [3, 3, 4, 4]
    assert mined(ROWS, "embedding") == ROWS
    assert len(mined(ROWS, "embedding", mined_negatives=2)[3]["negatives"]) == 2


def test_ranking_needs_something_wrong() -> None:
    assert mined(ROWS, mined_negatives=0) == ROWS
    assert mined([]) == []
    right = [ROWS[0], ROWS[3]]
    negatives.check(right, settings("ranking"))
    negatives.check(right, settings("embedding"))
    negatives.check(ROWS, settings("ranking", mined_negatives=0))
    with pytest.raises(UserError, match="no row has negatives"):
        negatives.check(right, settings("ranking", mined_negatives=0))
