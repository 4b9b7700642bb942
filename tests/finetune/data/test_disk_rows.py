import gc
import random
import tempfile
import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest

from tuneserve.errors import StepFailed
from tuneserve.finetune.data.disk_rows import DiskRows

ROWS: list[dict[str, Any]] = [
    {"text": "half \ud83d and \u2028", "label": 0.1},
    {"tokens": ["a", "b"], "tags": ["O", "B-X"]},
    {"messages": [{"role": "user", "content": "x", "more": None}], "tools": []},
    {"input_ids": list(range(100_000, 100_300)), "labels": [-100] * 300},
    {},
]


def test_rows_come_back_as_they_were() -> None:
    rows = DiskRows(ROWS)
    assert list(rows) == ROWS
    assert len(rows) == len(ROWS)
    assert rows[-1] == ROWS[-1]
    assert list(rows[1:4:2]) == ROWS[1:4:2]
    for wrong in (len(ROWS), -len(ROWS) - 1):
        with pytest.raises(IndexError):
            rows[wrong]
    # Anew each time: who changes one changes his own.
    rows[0]["label"] = 1.0
    assert rows[0] == ROWS[0]


def test_views_in_any_order() -> None:
    view = DiskRows(ROWS).view(np.array([3, 0, 0, 1]))
    assert list(view) == [ROWS[3], ROWS[0], ROWS[0], ROWS[1]]
    assert list(view[-2:]) == [ROWS[0], ROWS[1]]
    assert view[-1] == ROWS[1]
    assert not view[:0]


def test_more_rows_follow_and_are_read_in_between() -> None:
    rows = DiskRows()
    assert not rows
    for row in ROWS:
        rows.extend([row])
        assert rows[len(rows) - 1] == row
    assert list(rows) == ROWS


def test_a_row_takes_few_bytes_of_memory() -> None:
    chance, count = random.Random(0), 20_000
    tracemalloc.start()
    rows = DiskRows({"text": chance.randbytes(200).hex()} for _ in range(count))
    view = rows.view(np.arange(count)[::-1])
    gc.collect()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(view) == count
    assert held / count < 20
    assert peak / count < 60


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "w+b"))
    rows = DiskRows()
    with pytest.raises(StepFailed, match=rf"{tempfile.gettempdir()}: the disk is full") as caught:
        rows.extend(ROWS)
    assert "TMPDIR" in caught.value.hint
