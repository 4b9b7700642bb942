"""Rows are read from files, folders and standard input, and shared out."""

import io
import json
from pathlib import Path

import pytest

from tuneserve.errors import UserError
from tuneserve.predict import source
from tuneserve.predict.source import Shard, Source


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts(found: Source) -> list[str]:
    return [row["text"] for window in found.windows() for _, row in window if isinstance(row, dict)]


def test_a_folder_is_all_of_its_files_in_order(tmp_path: Path) -> None:
    lines(tmp_path / "b.jsonl", "three")
    (tmp_path / "a.csv").write_text("text\none\ntwo\n")
    (tmp_path / "notes.md").write_text("no rows")
    found = Source.at(tmp_path, Shard())
    assert texts(found) == ["one", "two", "three"]
    assert [Path(str(name)).name for name, *_ in found.state()] == ["a.csv", "b.jsonl"]


def test_windows_have_so_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "WINDOW", 2)
    found = Source.at(lines(tmp_path / "a.jsonl", *"abcde"), Shard())
    assert [len(window) for window in found.windows()] == [2, 2, 1]
    assert found.count() == 5


def test_shards_have_every_row_once(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *"abcdefg")
    shards = [Source.at(path, Shard(index, 3)) for index in range(3)]
    assert [texts(shard) for shard in shards] == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert str(shards[1].shard) == "1/3"


def test_standard_input_is_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "a"}\n\n"b"\n{\n'))
    found = Source.at(Path("-"), Shard())
    assert found.count() is None
    [window] = found.windows()
    assert window == [
        ("-:1", {"text": "a"}),
        ("-:3", "not a JSON object"),
        ("-:4", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    ]


def test_parquet_knows_its_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b", "c"]}), tmp_path / "a.parquet")
    found = Source.at(tmp_path / "a.parquet", Shard(0, 2))
    assert (found.count(), texts(found)) == (1, ["a", "c"])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such file or folder"):
        Source.at(tmp_path / "nowhere", Shard())
    with pytest.raises(UserError, match="has no files of rows"):
        Source.at(tmp_path, Shard())
