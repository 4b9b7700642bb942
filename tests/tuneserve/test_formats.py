import os
from pathlib import Path

import pytest

from tuneserve import formats
from tuneserve.errors import UserError


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_jsonl_names_lines_and_keeps_line_separators_inside_texts(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '\ufeff{"text": "one\u2028two"}\r\n\n[1]\n{"text": \n')
    assert list(formats.read(source)) == [
        ("a.jsonl:1", {"text": "one\u2028two"}),
        ("a.jsonl:3", "not a JSON object"),
        ("a.jsonl:4", "not JSON: Expecting value at column 10"),
    ]


def test_a_json_array_names_lines_too(tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", '\n[{"text": "one"}, 2,\n\n  {"text":\n "t,[wo"},\n{"text": "three"}\n]\n')
    assert list(formats.read(source)) == [
        ("a.json:2", {"text": "one"}),
        ("a.json:2", "not a JSON object"),
        ("a.json:4", {"text": "t,[wo"}),
        ("a.json:6", {"text": "three"}),
    ]
    broken = write(tmp_path / "b.json", '[\n{"text": "one"},\n{"text" "two"}\n]')
    assert list(formats.read(broken)) == [("b.json:3", "not JSON: Expecting ':' delimiter at column 9")]
    assert list(formats.read(write(tmp_path / "c.json", "[]"))) == []


def test_csv_counts_lines_of_quoted_cells(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", 'text,label\n"one\ntwo, ""three""",x\nfour\n\nfive,y\n')
    assert list(formats.read(source)) == [
        ("a.csv:2", {"text": 'one\ntwo, "three"', "label": "x"}),
        ("a.csv:4", "1 columns, the header has 2"),
        ("a.csv:6", {"text": "five", "label": "y"}),
    ]


def test_csv_with_a_broken_quote(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", 'text,label\none,x\n"two,y\n')
    found = list(formats.read(source))
    assert found[0] == ("a.csv:2", {"text": "one", "label": "x"})
    assert found[1][0] == "a.csv:3"
    assert str(found[1][1]).startswith("not CSV")


def test_tsv(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tsv", "text\tlabel\na, b\tx\n")
    assert list(formats.read(source)) == [("a.tsv:2", {"text": "a, b", "label": "x"})]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"tokens": [["a", "b"]], "tags": [["O", "O"]]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert list(formats.read(str(tmp_path / "a.parquet"))) == [
        ("a.parquet:1", {"tokens": ["a", "b"], "tags": ["O", "O"]})
    ]
    with pytest.raises(UserError, match="not Parquet"):
        list(formats.read(write(tmp_path / "b.parquet", "text")))


def test_conll_with_more_columns_document_marks_and_no_last_line_break(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.conll",
        "-DOCSTART- -X- O O\n\nAnna NNP B-NP B-PER\nlives VBZ B-VP O\n\n\t\nBerlin\tB-LOC\n \nodd\n\nJohn NNP I-PER",
    )
    assert list(formats.read(source)) == [
        ("a.conll:3", {"tokens": ["Anna", "lives"], "tags": ["B-PER", "O"]}),
        ("a.conll:7", {"tokens": ["Berlin"], "tags": ["B-LOC"]}),
        ("a.conll:9", "no tag after 'odd'"),
        ("a.conll:11", {"tokens": ["John"], "tags": ["I-PER"]}),
    ]


def test_the_format_may_be_told(tmp_path: Path) -> None:
    source = write(tmp_path / "a.data", '{"text": "x"}\n')
    with pytest.raises(UserError, match="no known suffix"):
        list(formats.read(source))
    assert list(formats.read(source, "jsonl")) == [("a.data:1", {"text": "x"})]


def test_examples_of_spacy(tmp_path: Path) -> None:
    lines = '["a", {"entities": [[0, 1, "X"]]}]\n["b", {"entities": []}]\n["c", 1]\n'
    expected = [
        ("a.jsonl:1", {"text": "a", "entities": [[0, 1, "X"]]}),
        ("a.jsonl:2", {"text": "b", "entities": []}),
        ("a.jsonl:3", "not a JSON object"),
    ]
    assert list(formats.read(write(tmp_path / "a.jsonl", lines))) == expected
    array = "[" + ",\n".join(lines.splitlines()) + "]"
    assert [row for _, row in formats.read(write(tmp_path / "a.json", array))] == [row for _, row in expected]
    with pytest.raises(UserError, match="only spaCy reads a DocBin"):
        list(formats.read(write(tmp_path / "a.spacy", "x")))


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(formats.read(str(tmp_path / "none.jsonl")))
    with pytest.raises(UserError, match="not UTF-8 at byte 10"):
        list(formats.read(write(tmp_path / "latin.jsonl", b'{"text": "\xe9"}\n')))


def test_hub_class_numbers_become_names() -> None:
    assert formats._named([0, 2, -1], ["O", "B-PER", "I-PER"]) == ["O", "I-PER", -1]


def test_a_hub_that_can_not_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="data set nobody/nothing could not be loaded"):
        list(formats.read("nobody/nothing"))
