"""One real run: a tiny classifier is quantized and measured through the server and the vLLM engine."""

from pathlib import Path

import pytest
import torch

from tuneserve import checkpoint
from tuneserve.evaluation import quality
from tuneserve.evaluation.evaluate import held_out_rows
from tuneserve.evaluation.measurement import Measurement
from tuneserve.quantize import quantize

pytestmark = pytest.mark.engine


def predictions(directory: Path, texts: list[str]) -> list[str]:
    """What plain transformers makes of the texts."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    return [model.config.id2label[int(index)] for index in logits.argmax(-1)]


def test_the_served_result_predicts_what_transformers_does(bert: Path, tmp_path: Path) -> None:
    """Starts one engine: the measurement before comes from transformers."""
    manifest = checkpoint.load(bert)
    rows = held_out_rows(bert, manifest)
    expected = predictions(bert, [row["text"] for row in rows])
    metrics = quality.sequence_classification([row["label"] for row in rows], expected, manifest.labels)
    before = Measurement(metrics, len(rows), 1.0, 1.0, "texts/s", expected)

    report = quantize(bert, tmp_path / "out", "w8a8", max_drop=None, before=before)

    assert report.after.predictions == predictions(tmp_path / "out", [row["text"] for row in rows])
    assert report.after.throughput > 0
    assert checkpoint.load(tmp_path / "out").lineage[-1].metrics["accuracy"] == report.after.metrics["accuracy"]
