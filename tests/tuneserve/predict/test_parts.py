"""Answered windows are kept until the output is whole."""

import csv
import datetime
import json
import math
from pathlib import Path

import pytest

from tuneserve.errors import UserError
from tuneserve.predict.parts import Parts, dumps

ABOUT = {"checkpoint": "1", "options": {"all_scores": False}}
FIRST = [{"id": 1, "text": "a\u2028b", "predicted_label": "x"}, {"id": 2, "text": "ü", "predicted_error": "no"}]
SECOND = [{"id": "three", "predicted_label": None, "predicted_scores": {"x": 0.5}}]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path / "out.jsonl", ABOUT)


def written(output: Path) -> None:
    parts = Parts(output, ABOUT)
    parts.write(1, SECOND)
    parts.write(0, FIRST)
    parts.finish()
    assert not parts.folder.exists()


def test_the_output_has_the_order_of_the_rows(tmp_path):
    written(tmp_path / "out.jsonl")
    found = (tmp_path / "out.jsonl").read_text().split("\n")
    assert list(map(json.loads, filter(None, found))) == [*FIRST, *SECOND]


def test_csv_has_every_column(tmp_path):
    written(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ["a\u2028b", "ü", ""]
    assert rows[2]["predicted_scores"] == '{"x": 0.5}'


def test_parquet_has_every_column_and_text_where_types_differ(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    written(tmp_path / "out.parquet")
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["1", "2", "three"]
    assert [row["predicted_label"] for row in rows] == ["x", None, None]
    assert [row["predicted_scores"] for row in rows] == [None, None, {"x": 0.5}]


def test_a_run_is_resumed_only_as_it_was_started(parts):
    parts.write(3, FIRST)
    again = Parts(parts.output, ABOUT, resume=True)
    assert again.done == {3}
    with pytest.raises(UserError, match="from an interrupted run, which has 1 parts"):
        Parts(parts.output, ABOUT)
    with pytest.raises(UserError, match="another checkpoint and another options"):
        Parts(parts.output, {"checkpoint": "2"}, resume=True)
    assert Parts(parts.output, {"checkpoint": "2"}, overwrite=True).done == set()


def test_a_part_is_whole_or_not_there(parts, monkeypatch):
    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            parts.write(0, FIRST)
    assert Parts(parts.output, ABOUT, resume=True).done == set()


def test_an_output_is_not_replaced_unless_asked(tmp_path):
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        Parts(tmp_path / "out.csv", ABOUT)
    Parts(tmp_path / "out.csv", ABOUT, overwrite=True)
    assert (tmp_path / "out.csv").read_text() == "mine", "until there is another"
    with pytest.raises(UserError, match=r"out: unknown suffix"):
        Parts(tmp_path / "out", ABOUT)


def test_values_that_json_has_not():
    row = {"at": datetime.date(2026, 1, 2), "score": math.nan, "inside": [{"x": math.inf}], "bytes": b"a"}
    assert json.loads(dumps(row)) == {"at": "2026-01-02", "score": None, "inside": [{"x": None}], "bytes": "b'a'"}
