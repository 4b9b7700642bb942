"""What is refused before a server starts. Whole runs are in tests/engine/test_predict.py."""

from pathlib import Path
from typing import Any

import pytest

from tuneserve.errors import CheckpointError, UserError
from tuneserve.predict import run
from tuneserve.predict.run import Job, predict
from tuneserve.predict.source import Shard, Source


@pytest.fixture
def job(make_bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """job(text, **settings): a classifier asked about a file of this content. No server starts."""

    def started(*given: object) -> None:
        raise AssertionError("it started a server")

    monkeypatch.setattr(run, "launched", started)

    def make(text: str, **settings: Any) -> Job:
        (tmp_path / "rows.jsonl").write_text(text)
        return Job(make_bert(), Source.at(tmp_path / "rows.jsonl", Shard()), **settings)

    return make


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", {}, "there are no rows to answer"),
        ("no json\n", {}, r"rows\.jsonl:1: "),
        ('{"review": "a"}\n', {}, r"rows\.jsonl:1: .*text"),
        ('{"review": "a"}\n', {"text": "body"}, "--column text=body: no such column"),
        ('{"text": null}\n{"text": 5}\n', {}, r"rows\.jsonl:1: .*text"),
    ],
)
def test_rows_of_which_none_can_be_answered(
    job: Any, tmp_path: Path, text: str, columns: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predict(job(text, columns=columns), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_one_good_row_is_enough(job: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="it started a server"):
        predict(job('{"text": 5}\nno json\n{"text": "good"}\n'), tmp_path / "out.jsonl")


def test_what_can_not_be_resumed_and_what_is_complete(job: Any, tmp_path: Path) -> None:
    given = job('{"text": "good"}\n')
    with pytest.raises(UserError, match="standard output can't be resumed"):
        predict(given, Path("-"), resume=True)
    (tmp_path / "out.jsonl").write_text("answers\n")
    assert predict(given, tmp_path / "out.jsonl", resume=True).rows == 0
    assert (tmp_path / "out.jsonl").read_text() == "answers\n"
    with pytest.raises(CheckpointError):
        predict(Job(tmp_path, given.source), tmp_path / "other.jsonl")


def test_windows_are_printed_in_their_order_whichever_is_answered_first(capsys: pytest.CaptureFixture[str]) -> None:
    printing = run._InOrder()
    printing(1, iter([{"n": 2}]))
    assert capsys.readouterr().out == ""
    printing(0, [{"n": 0}, {"n": 1}])
    printing(2, [])
    printing(3, [{"n": 3}])
    assert capsys.readouterr().out.splitlines() == [f'{{"n": {number}}}' for number in range(4)]
