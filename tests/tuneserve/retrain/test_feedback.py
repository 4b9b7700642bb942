"""The rows that FeedbackService kept: which of them count."""

from pathlib import Path

import pytest

from tuneserve.errors import UserError
from tuneserve.retrain import feedback


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_of_one_request_the_last_row_counts_and_each_row_once(tmp_path: Path) -> None:
    write(
        tmp_path / "ann" / "labels.jsonl",
        '{"text": "a", "label": "x", "request_id": "1"}\n'
        '{"text": "a", "label": "y", "request_id": "1"}\n'
        '{"label": "z", "text": "b", "request_id": "2"}\n'
        '{"text": "c", "label": "z"}\n',
    )
    # Another tenant's request of the same id, and a line that is just being written.
    write(
        tmp_path / "bob" / "labels.jsonl",
        '{"text": "d", "label": "x", "request_id": "1"}\n{"text": "b", "label": "z", "request_id": "9"}\n{"text": "e',
    )
    found = feedback.read(tmp_path / "*" / "labels.jsonl")
    assert [(row["text"], row["label"]) for row in found] == [("a", "y"), ("b", "z"), ("c", "z"), ("d", "x")]
    assert feedback.read(tmp_path / "nobody" / "labels.jsonl") == []
    assert feedback.without(found, found[1:]) == [{"text": "a", "label": "y"}]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    write(tmp_path / "labels.jsonl", '{"text": "a"}\n[]\n')
    with pytest.raises(UserError, match=r"labels\.jsonl:2: not a JSON object"):
        feedback.read(tmp_path / "labels.jsonl")
