"""What is kept of attempts, and what a kill leaves."""

from pathlib import Path

import pytest

from tuneserve.errors import StepFailed
from tuneserve.retrain import attempts
from tuneserve.retrain.attempts import Attempts

ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


def test_the_last_that_was_promoted_is_the_current_one(tmp_path: Path) -> None:
    kept = Attempts(tmp_path)
    assert (kept.current, kept.unfinished) == (None, None)
    first = kept.begin(ROWS[:1], source="base", settings={})
    first.checkpoint.mkdir()
    kept.promote(first)
    second = Attempts(tmp_path).begin(ROWS[1:], source="0001", settings={})
    second.note(outcome=attempts.REFUSED)
    kept = Attempts(tmp_path)
    assert (kept.current, kept.unfinished) == (tmp_path / "0001", None)
    assert (tmp_path / "current").resolve() == (tmp_path / "0001").resolve()
    assert (kept.learned(), kept.tried()) == (ROWS[:1], ROWS)
    assert [one.number for one in kept.all] == [1, 2]


def test_an_attempt_is_there_once_it_has_begun(tmp_path: Path) -> None:
    # Killed before it began, and while a checkpoint was written.
    (tmp_path / "0001.jsonl").write_text("{}\n")
    (tmp_path / ".0001.abc.tmp").mkdir()
    assert Attempts(tmp_path).unfinished is None
    Attempts(tmp_path).begin(ROWS, source="base", settings={"a": 1})
    found = Attempts(tmp_path).unfinished
    assert found is not None
    assert (found.rows(), found.known["settings"]) == (ROWS, {"a": 1})
    assert not (tmp_path / ".0001.abc.tmp").exists()
    found.checkpoint.mkdir()
    found.forget()
    assert list(tmp_path.iterdir()) == []


def test_one_run_at_a_time(tmp_path: Path) -> None:
    again = attempts.alone(tmp_path / "out")
    with attempts.alone(tmp_path / "out"), pytest.raises(StepFailed, match="another run works here"):
        again.__enter__()
    with attempts.alone(tmp_path / "out"):
        pass
