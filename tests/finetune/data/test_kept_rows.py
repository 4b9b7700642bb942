"""The rows that a checkpoint keeps for quantizing: of training, and never held out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.checkpoint.rows import input_key
from tuneserve.finetune.data import kept_rows
from tuneserve.v1 import checkpoint_pb2 as pb

Run = Callable[..., Path]


@pytest.mark.train
def test_a_checkpoint_keeps_training_rows_and_no_others(trained: Path, reviews: Path) -> None:
    manifest = checkpoint.load(trained)
    kept, test = rows.read(trained / manifest.calibration_split.path), rows.read(trained / checkpoint.TEST_SPLIT)
    assert rows.sha256(kept) == manifest.calibration_split.sha256
    assert len(kept) == manifest.calibration_split.rows == 48
    assert all(row in rows.read(reviews) for row in kept)
    assert not {input_key(row) for row in kept} & {input_key(row) for row in test}
    assert (trained.with_name("out-adapter") / checkpoint.CALIBRATION_SPLIT).exists()


def test_no_more_than_are_needed_are_kept(tmp_path: Path) -> None:
    manifest = pb.Checkpoint()
    train = [{"text": f"sentence {number}", "label": "a"} for number in range(kept_rows.ROWS + 1)]
    kept_rows.keep(tmp_path, manifest, train)
    assert rows.read(tmp_path / manifest.calibration_split.path) == train[: kept_rows.ROWS]
    kept_rows.copy(tmp_path, copied := tmp_path / "copy", manifest)
    assert (copied / checkpoint.CALIBRATION_SPLIT).read_bytes() == (
        tmp_path / checkpoint.CALIBRATION_SPLIT
    ).read_bytes()


def test_a_checkpoint_without_them_is_copied_as_it_is(tmp_path: Path) -> None:
    kept_rows.copy(tmp_path, tmp_path / "copy", pb.Checkpoint())
    assert not (tmp_path / "copy").exists()
