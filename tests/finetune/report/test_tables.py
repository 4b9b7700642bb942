"""Tables for people: what `validate` finds."""

from pathlib import Path

import pytest

from tuneserve.checkpoint import rows
from tuneserve.finetune.report.tables import validate

from ..conftest import WORDS

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def test_validate_reports_without_training(
    tmp_path: Path, encoder: Path, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(
        f"task: sequence-classification\nbase_model: {encoder}\ntrain: {reviews}\noutput: out\nmax_length: 8\n"
    )
    found = validate(tmp_path / "run.yaml")
    assert found["train"] + found["test"] + found["duplicates"] == 60
    assert sum(found["labels"].values()) == pytest.approx(1)
    assert 0 < found["lengths"]["truncated"] < 1
    printed = capsys.readouterr().out
    assert "rows are longer than max_length (8)" in printed
    assert "negative" in printed
    assert not (tmp_path / "out").exists()


def test_validate_tells_of_entities_that_tokens_can_not_tell(tmp_path: Path, encoder: Path) -> None:
    texts = [f"{filler} anna lives in berlin" for filler in WORDS]
    # Of every other one, the last letter is missing.
    spans = [[len(text) - 6, len(text) - number % 2, "LOC"] for number, text in enumerate(texts)]
    rows.write(
        tmp_path / "d.jsonl",
        ({"text": text, "entities": [span]} for text, span in zip(texts, spans, strict=True)),
    )
    settings = f"task: token-classification\nbase_model: {encoder}\ntrain: d.jsonl\noutput: out\n"
    (tmp_path / "run.yaml").write_text(settings)
    assert validate(tmp_path / "run.yaml")["inexact"] == len(WORDS) // 2
