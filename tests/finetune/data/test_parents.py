"""What a run learns from has seen rows, and held some out: neither changes sides, also in a file that has grown."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuneserve import checkpoint
from tuneserve.checkpoint import rows, seen
from tuneserve.checkpoint.rows import Row, input_key
from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.data import dataset

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def keys(some: Any) -> set[str]:
    return {input_key(row) for row in some}


def load(train: Path, **values: Any) -> dataset.Data:
    given = {"task": "sequence-classification", "train": str(train), "output": "out"}
    return dataset.load(config.parse(given | values, train.parent))


@pytest.fixture
def grown(reviews: Path, tmp_path: Path) -> Path:
    """The reviews, and as many others."""
    old: list[Row] = [json.loads(line) for line in reviews.read_text().splitlines()]
    rows.write(tmp_path / "grown.jsonl", [*old, *({**row, "text": f"the {row['text']} story"} for row in old)])
    return tmp_path / "grown.jsonl"


def test_a_checkpoint_tells_all_that_it_was_trained_on(trained: Path, reviews: Path) -> None:
    everything = rows.read(reviews)
    test = keys(rows.read(trained / checkpoint.TEST_SPLIT))
    digests = seen.trained_on(trained)
    assert digests is not None
    assert np.isin(seen.inputs(everything), digests).tolist() == [input_key(row) not in test for row in everything]
    manifest = checkpoint.load(trained)
    assert manifest.trained_rows.rows == len(digests) == 48
    # An adapter that is merged again tells it too.
    adapter = trained.with_name("out-adapter")
    assert checkpoint.read_manifest(adapter).trained_rows == manifest.trained_rows


@pytest.mark.parametrize("key", ["base_model", "continue_from", "teacher"])
def test_a_grown_file(trained: Path, grown: Path, encoder: Path, key: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    before = keys(rows.read(trained / checkpoint.TEST_SPLIT))
    old = keys(rows.read(grown)[:60])
    models = {"base_model": str(encoder)} if key == "teacher" else {}
    for seed in range(3):
        split = load(grown, **models, **{key: str(trained)}, seed=seed)
        assert keys(split.test) & old == before
        assert len(split.test) == 12 + 6
        assert keys(split.train) >= old - before
        assert not keys(split.train) & keys(split.test)
    assert "12 rows stay held out, as they were before" in caplog.text


def test_a_test_file_that_was_trained_on(
    trained: Path, reviews: Path, grown: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = keys(rows.read(trained / checkpoint.TEST_SPLIT))
    split = load(grown, base_model=str(trained), test=str(reviews))
    assert keys(split.test) == before
    assert "test: 48 of 60 rows are left out" in caplog.text
    rows.write(grown.with_name("seen.jsonl"), (row for row in rows.read(reviews) if input_key(row) not in before))
    with pytest.raises(
        UserError, match="0 to test on: the model that it continues from, or its teacher, was trained on"
    ):
        load(grown, base_model=str(trained), test="seen.jsonl")


def test_an_older_checkpoint_can_not_tell(
    trained: Path, reviews: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = Path(shutil.copytree(trained, tmp_path / "older"))
    manifest = checkpoint.read_manifest(older)
    manifest.ClearField("trained_rows")
    (older / seen.FILE).unlink()
    checkpoint.seal(older, manifest)
    before = keys(rows.read(older / checkpoint.TEST_SPLIT))
    split = load(reviews, base_model=str(older))
    # What it held out is known all the same.
    assert keys(split.test) >= before
    assert "older does not say what it was trained on" in caplog.text


def test_what_follows_tells_what_came_before(
    run: Callable[..., Path], trained: Path, grown: Path, tmp_path: Path
) -> None:
    values = {"task": "sequence-classification", "train": str(grown), "epochs": 1}
    output = run(tmp_path, base_model=str(trained), max_train_rows=10, **values)
    old, new = seen.trained_on(trained), seen.trained_on(output)
    assert old is not None
    assert new is not None
    assert np.isin(old, new).all()
    assert len(new) <= 58
