"""Temperatures: the right one is found, the checkpoint keeps it, and nothing that it does not fit gets it."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.checkpoint.rows import Row
from tuneserve.errors import UserError
from tuneserve.finetune.data.tokens import Target, encode
from tuneserve.finetune.eval import evaluation, temperature
from tuneserve.finetune.export import merging
from tuneserve.finetune.model import base_models
from tuneserve.finetune.soup import soup
from tuneserve.inspect import show_manifest

Run = Callable[..., Path]

train = pytest.mark.train
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def target(problem_type: str) -> Target:
    return Target("sequence-classification", ("a", "b", "c"), problem_type, 64)


@pytest.mark.parametrize("wanted", [0.5, 1.0, 3.0])
def test_the_temperature_that_the_labels_were_drawn_at_is_found(wanted: float) -> None:
    chance = np.random.default_rng(0)
    logits = chance.normal(0, 3, (4000, 3))
    scaled = np.exp(logits / wanted)
    one: list[Row] = [{"labels": int(chance.choice(3, p=row))} for row in scaled / scaled.sum(1, keepdims=True)]
    assert temperature.fit(target("single-label"), one, [logits]) == pytest.approx(wanted, rel=0.1)
    several: list[Row] = [{"labels": list(row)} for row in (chance.random((4000, 3)) < scaled / (1 + scaled)) * 1.0]
    assert temperature.fit(target("multi-label"), several, [logits]) == pytest.approx(wanted, rel=0.1)


@pytest.fixture(scope="module")
def sure(run: Run, tmp_path_factory: pytest.TempPathFactory, trained: Path, reviews: Path) -> Path:
    """A model that is sure of what it learned, on rows of which a third say the opposite."""
    folder, chance = tmp_path_factory.mktemp("sure"), random.Random(0)
    lines = [json.loads(line) for line in reviews.read_text().splitlines()]
    # None of them is one that it has learned.
    starts = ("what", "who", "where", "anna", "john", "berlin", "paris", "sky")
    lines = [row | {"text": f"{start} {row['text']}"} for start in starts for row in lines]
    for row in lines:
        if chance.random() < 0.3:
            row["label"] = {"positive": "negative", "negative": "positive"}[row["label"]]
    rows.write(folder / "noisy.jsonl", lines)
    return run(
        folder,
        task="sequence-classification",
        base_model=str(trained),
        train="noisy.jsonl",
        test_size=0.3,
        validation_size=0.4,
        temperature_scaling=True,
        epochs=1,
        learning_rate=1e-6,
    )


@train
@quiet
def test_a_model_that_is_too_sure_becomes_less_so(sure: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = checkpoint.load(sure)
    assert manifest.temperature > 1.5
    metrics = manifest.lineage[-1].metrics
    assert metrics["calibration_error"] < metrics["unscaled_calibration_error"]

    test, found = rows.read(sure / checkpoint.TEST_SPLIT), merging.target_of(manifest)
    assert found.temperature == manifest.temperature
    tokenizer = base_models.load_tokenizer(str(sure))
    model, _ = base_models.load_model(found, str(sure))
    encoded = encode(tokenizer, found, test)
    logits = np.concatenate(evaluation.logits(model, tokenizer, found, encoded))
    labels = np.array([row["labels"] for row in encoded])
    loss = temperature.negative_log_likelihood
    assert loss(found, logits / manifest.temperature, labels) < 0.9 * loss(found, logits, labels)

    show_manifest(sure, manifest, Console())
    assert f"temperature    {manifest.temperature:.3f}" in capsys.readouterr().out
    assert f"Divide its logits by {manifest.temperature:.4g}" in (sure / checkpoint.CARD).read_text()
    assert "Without the temperature" in (sure.with_name("out-report") / "report.html").read_text()


@train
@quiet
def test_a_merge_keeps_it_and_a_soup_does_not(
    sure: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    merging.merge(sure.with_name("out-adapter"), tmp_path / "merged")
    assert checkpoint.load(tmp_path / "merged").temperature == checkpoint.load(sure).temperature
    soup([sure, tmp_path / "merged"], tmp_path / "soup")
    made = checkpoint.load(tmp_path / "soup")
    assert not made.HasField("temperature")
    assert "unscaled_calibration_error" not in made.lineage[-1].metrics
    assert "the averaged model has no temperature" in caplog.text


def test_rows_that_are_all_right_are_no_evidence_of_being_sure() -> None:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 3, 200)
    logits = chance.normal(0, 0.1, (200, 3)) + 2 * np.eye(3)[labels]
    found = temperature.fit(target("single-label"), [{"labels": int(label)} for label in labels], [logits])
    # Without a prior it is the lowest that is looked at.
    assert 0.2 < found < 0.9
    few: list[Row] = [{"labels": int(label)} for label in labels[:99]]
    with pytest.raises(UserError, match="99 validation rows that the model has not seen, 100 are needed"):
        temperature.fit(target("single-label"), few, [logits[:99]])


@train
@quiet
def test_too_few_rows_are_refused_before_training(run: Run, tmp_path: Path, encoder: Path, reviews: Path) -> None:
    with pytest.raises(UserError, match="temperature_scaling: 11 validation rows"):
        run(
            tmp_path,
            task="sequence-classification",
            base_model=str(encoder),
            train=str(reviews),
            validation_size=0.2,
            temperature_scaling=True,
        )
