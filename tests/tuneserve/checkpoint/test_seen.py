"""Digests of training rows: kept whole, found again, and never measured on."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuneserve import checkpoint
from tuneserve.checkpoint import seen
from tuneserve.errors import CheckpointError, UserError
from tuneserve.evaluation import evaluate
from tuneserve.evaluation.measurement import Measurement
from tuneserve.v1 import checkpoint_pb2 as pb

ROWS: list[dict[str, Any]] = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(20)]


def made(directory: Path, trained: list[dict[str, Any]] | None, **more: Any) -> Path:
    """A checkpoint's manifest and digests, without a model."""
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    manifest = pb.Checkpoint(**more)
    if trained is not None:
        seen.keep(directory, manifest, seen.learned(trained))
    checkpoint.seal(directory, manifest)
    return directory


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    first = made(tmp_path / "first", [*ROWS[:12], ROWS[0] | {"label": "b"}])
    manifest = checkpoint.load(first)
    assert manifest.trained_rows.rows == 12
    assert [file.path for file in manifest.files if file.path == seen.FILE] == [seen.FILE]
    assert (first / seen.FILE).stat().st_size == 12 * 16
    found = seen.trained_on(first)
    assert found is not None
    assert np.isin(seen.inputs(ROWS), found).tolist() == [True] * 12 + [False] * 8


def test_changed_digests_are_refused(tmp_path: Path) -> None:
    first = made(tmp_path / "first", ROWS)
    (first / seen.FILE).write_bytes(b"\0" * 320)
    with pytest.raises(CheckpointError, match=r"trained_rows\.blake2b: not the digests that tuneserve\.json names"):
        seen.trained_on(first)


def test_the_beginning_of_a_conversation_that_was_learned_has_been_seen(tmp_path: Path) -> None:
    turns = [{"role": role, "content": f"{n}"} for n in range(2) for role in ("user", "assistant")]
    first = made(tmp_path / "first", [{"messages": turns}])
    other = {"messages": [{"role": "user", "content": "other"}, turns[1]]}
    assert seen.unseen([{"messages": turns[:2]}, other], [first]) == [other]


def test_rows_that_any_was_trained_on_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = made(tmp_path / "first", ROWS[:8]), made(tmp_path / "second", ROWS[4:12])
    assert seen.unseen(ROWS, [first, second]) == ROWS[12:]
    assert f"12 of 20 rows are left out: {first} and {second} was trained on them" in caplog.text
    with pytest.raises(UserError, match=r"all 8 rows are among those that .*first was trained on"):
        seen.unseen(ROWS[:8], [first])
    caplog.clear()
    assert seen.unseen(ROWS[12:], [first, second]) == ROWS[12:]
    assert not caplog.text


def test_where_it_can_not_be_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    older = made(tmp_path / "older", None)
    assert seen.unseen(ROWS, [older, tmp_path]) == ROWS
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert f"{older} does not say what it was trained on" in caplog.text


def test_what_is_compared_was_seen_by_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"task": pb.TASK_SEQUENCE_CLASSIFICATION, "labels": ["a", "b"]}
    held_out = pb.TestSplit(path="eval/test.jsonl", rows=10)
    from tuneserve.checkpoint import rows

    held_out.sha256 = rows.sha256(ROWS[10:])
    first, second = made(tmp_path / "first", ROWS[:10], **kind, test_split=held_out), tmp_path / "second"
    rows.write(first / held_out.path, ROWS[10:])
    checkpoint.seal(first, checkpoint.read_manifest(first))
    # Split by another seed.
    made(second, ROWS[5:15], **kind)
    measured = []

    def measure(directory: Path, given: list[Any]) -> Measurement:
        measured.append((directory, given))
        return Measurement({"accuracy": 1.0}, len(given), 1.0, 1.0, "texts/s", [], [[1.0, 1.0]] * len(given))

    # In place of two servers.
    monkeypatch.setattr(evaluate, "measure", measure)
    evaluate.compare(first, second)
    assert measured == [(first, ROWS[15:]), (second, ROWS[15:])]
    measured.clear()
    evaluate.compare(first, second, ROWS[:5] + ROWS[18:])
    assert measured == [(first, ROWS[18:]), (second, ROWS[18:])]


def test_evaluate_leaves_out_what_was_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from tuneserve.checkpoint import rows
    from tuneserve.cli import cli

    first = made(tmp_path / "first", ROWS[:12])
    rows.write(tmp_path / "rows.jsonl", ROWS)
    measured = []

    def measure(directory: Path, given: list[Any]) -> Measurement:
        measured.append((directory, given))
        return Measurement({"accuracy": 1.0}, len(given), 1.0, 1.0, "texts/s", [], [[1.0, 1.0]] * len(given))

    # In place of a server.
    monkeypatch.setattr(evaluate, "measure", measure)
    result = CliRunner().invoke(cli, ["evaluate", str(first), "--data", str(tmp_path / "rows.jsonl")])
    assert result.exit_code == 0, result.output
    assert measured == [(first, ROWS[12:])]
