"""The checkpoint that training continues from: its held-out rows stay unseen, what it keeps is a fair sample."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.checkpoint.rows import input_key
from tuneserve.errors import UserError
from tuneserve.finetune.data import dataset, previous

from ..train.test_continual import parse

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def test_old_test_rows_are_never_trained_on(trained: Path, reviews: Path) -> None:
    test = {input_key(row) for row in rows.read(trained / checkpoint.TEST_SPLIT)}
    # The same file is the new data and the old.
    split = dataset.load(parse(trained, reviews, replay=str(reviews), replay_share=0.9, seed=1))
    assert not test & {input_key(row) for row in split.train}
    assert len(split.old.test) == len(test) == 12
    assert split.replayed == 0, "no old row is also a new one"


def test_the_share_of_old_rows(trained: Path, new: Path, reviews: Path) -> None:
    def load(**more: Any) -> dataset.Data:
        return dataset.load(parse(trained, new, test_size=0.25, replay=str(reviews), **more))

    split = load(replay_share=0.25)
    assert (len(split.train), split.replayed) == (24, 6)
    assert sum(row["label"] == "negative" for row in split.train) == 3
    split = load(replay_share=0.25, validation_size=0.25)
    assert len(split.train) + len(split.validation) == 24
    assert split.replayed == sum(row["label"] != "place" for row in split.train) < 6
    # No more than there are, but for the held-out ones.
    assert load(replay_share=0.9).replayed == 48


def test_the_rows_that_a_checkpoint_keeps_can_be_replayed(trained: Path, new: Path, tmp_path: Path) -> None:
    # The new data has other columns than they have.
    mine = [{"sentence": row["text"], "kind": row["label"]} for row in rows.read(new)]
    rows.write(tmp_path / "mine.jsonl", mine)
    values = {"columns": {"text": "sentence", "label": "kind"}, "test_size": 0.25, "replay_share": 0.25}
    split = dataset.load(parse(trained, tmp_path / "mine.jsonl", **values))
    assert (len(split.train), split.replayed) == (24, 6)
    kept = rows.read(trained / checkpoint.CALIBRATION_SPLIT)
    assert all(row in kept for row in split.train if row["label"] != "place")

    without = Path(shutil.copytree(trained, tmp_path / "without"))
    manifest = checkpoint.load(without)
    manifest.ClearField("calibration_split")
    checkpoint.seal(without, manifest)
    with pytest.raises(UserError, match="without keeps no training rows"):
        dataset.load(parse(without, tmp_path / "mine.jsonl", **values))


def test_what_can_not_be_gone_on_from(trained: Path, encoder: Path, new: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not trained here"):
        dataset.load(parse(encoder, new))
    with pytest.raises(UserError, match="is for sequence-classification, task is generation"):
        dataset.load(parse(trained, new, task="generation"))
    with pytest.raises(UserError, match="is single-label, problem_type is multi-label"):
        dataset.load(parse(trained, new, problem_type="multi-label"))
    with pytest.raises(UserError, match="labels: negative is missing"):
        dataset.load(parse(trained, new, labels=["positive", "place"]))
    quantized = Path(shutil.copytree(trained, tmp_path / "quantized"))
    manifest = checkpoint.read_manifest(quantized)
    manifest.quantization = "w8a8"
    checkpoint.seal(quantized, manifest)
    with pytest.raises(UserError, match="is quantized"):
        dataset.load(parse(quantized, new))


def test_what_is_kept_is_a_sample_of_all_generations() -> None:
    counts = np.zeros(3)
    for seed in range(400):
        kept, learned = np.arange(0), 0
        for generation, rows_of_it in enumerate((600, 100, 300)):
            new = np.random.default_rng([seed, generation]).permutation(1000 * generation + np.arange(rows_of_it))
            kept = previous.sample(new, kept, learned, 50, seed)
            learned += rows_of_it
            assert len(set(kept.tolist())) == 50
        counts += np.bincount(kept // 1000, minlength=3)
    assert counts / counts.sum() == pytest.approx([0.6, 0.1, 0.3], abs=0.015)
    # Where all of them fit, all are kept.
    assert sorted(previous.sample(np.arange(5), np.arange(5, 9), 4, 50, 0)) == list(range(9))
    assert previous.sample(np.arange(99), np.arange(0), 0, 50, 0).tolist() == list(range(50))
