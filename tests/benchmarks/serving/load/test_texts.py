"""The inputs of a run, from a file."""

from pathlib import Path

import pytest

from tuneserve.benchmarks.serving.load import texts
from tuneserve.errors import UserError


def test_a_line_is_an_input_and_blank_ones_are_none(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\n\n  two words \n \n", encoding="utf-8")
    assert texts.read(tmp_path / "texts.txt") == ["one", "two words"]


@pytest.mark.parametrize(("content", "message"), [(b" \n\n", "no text in it"), (b"\xff\xfe", "can't be read")])
def test_files_without_texts(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "texts.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        texts.read(tmp_path / "texts.txt")
