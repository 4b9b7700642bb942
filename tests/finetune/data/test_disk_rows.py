import gc
import random
import tempfile
import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest

from tuneserve.errors import StepFailed
from tuneserve.finetune.data.disk_rows import Spool

ROWS: list[dict[str, Any]] = [
    {"text": "half \ud83d and \u2028", "label": 0.1},
    {"tokens": ["a", "b"], "tags": ["O", "B-X"]},
    {"messages": [{"role": "user", "content": "x", "more": None}], "tools": []},
    {"input_ids": list(range(100_000, 100_300)), "labels": [-100] * 300},
    {},
]


def test_rows_come_back_as_they_were() -> None:
    spool = Spool(ROWS)
    assert list(spool) == ROWS
    assert len(spool) == len(ROWS)
    assert spool[-1] == ROWS[-1]
    assert list(spool[1:4:2]) == ROWS[1:4:2]
    for wrong in (len(ROWS), -len(ROWS) - 1):
        with pytest.raises(IndexError):
            spool[wrong]
    # Anew each time: who changes one changes his own.
    spool[0]["label"] = 1.0
    assert spool[0] == ROWS[0]


def test_views_in_any_order() -> None:
    view = Spool(ROWS).view(np.array([3, 0, 0, 1]))
    assert list(view) == [ROWS[3], ROWS[0], ROWS[0], ROWS[1]]
    assert list(view[-2:]) == [ROWS[0], ROWS[1]]
    assert view[-1] == ROWS[1]
    assert not view[:0]


def test_more_rows_follow_and_are_read_in_between() -> None:
    spool = Spool()
    assert not spool
    for row in ROWS:
        spool.extend([row])
        assert spool[len(spool) - 1] == row
    assert list(spool) == ROWS


def test_a_row_takes_few_bytes_of_memory() -> None:
    chance, count = random.Random(0), 20_000
    tracemalloc.start()
    spool = Spool({"text": chance.randbytes(200).hex()} for _ in range(count))
    view = spool.view(np.arange(count)[::-1])
    gc.collect()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(view) == count
    assert held / count < 20
    assert peak / count < 60


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "w+b"))
    spool = Spool()
    with pytest.raises(StepFailed, match=rf"{tempfile.gettempdir()}: the disk is full") as caught:
        spool.extend(ROWS)
    assert "TMPDIR" in caught.value.hint
