"""A model's answers: by problem type, in the order of the rows, in batches of a bounded size."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.checkpoint.rows import Row
from tuneserve.finetune.data.tokens import Target, encode
from tuneserve.finetune.eval import evaluation
from tuneserve.finetune.model import base_models

from ... import tiny

SEQUENCE = "sequence-classification"


def test_one_label_each() -> None:
    rows: list[Row] = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}, {"text": "z", "label": "a"}]
    outputs = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
    found = evaluation.texts(Target(SEQUENCE, ("a", "b"), "single-label", 8), rows, outputs)
    assert found.predicted == ["a", "b", "b"]
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)
    assert found.losses == pytest.approx([0.1269, 0.1269, 4.0181], abs=1e-3)
    assert found.scores[2] == pytest.approx([0.018, 0.982], abs=1e-3)
    assert found.figures["accuracy_low"] < 2 / 3 < found.figures["accuracy_high"]


def test_a_temperature_changes_how_sure_it_is_and_no_answer() -> None:
    rows: list[Row] = [{"text": "x", "label": "a"}, {"text": "y", "label": "a"}]
    outputs = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    plain, soft = (
        evaluation.texts(Target(SEQUENCE, ("a", "b"), "single-label", 8, temperature=one), rows, outputs)
        for one in (1.0, 100.0)
    )
    assert soft.predicted == plain.predicted
    assert soft.scores[0] == pytest.approx([0.51, 0.49], abs=1e-2)
    assert soft.metrics["calibration_error"] < plain.metrics["calibration_error"]
    assert soft.metrics["unscaled_calibration_error"] == plain.metrics["calibration_error"]


def test_several_labels_and_numbers() -> None:
    rows: list[Row] = [{"text": "x", "labels": ["a"]}, {"text": "y", "labels": []}]
    outputs = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    several = evaluation.texts(Target(SEQUENCE, ("a", "b"), "multi-label", 8), rows, outputs)
    assert several.predicted == [["a", "b"], []]
    rows = [{"text": "x", "label": 1.0}, {"text": "y", "label": 3.0}]
    numbers = evaluation.texts(Target(SEQUENCE, ("score",), "regression", 8), rows, torch.tensor([[1.5], [3.0]]))
    assert (numbers.predicted, numbers.losses) == ([1.5, 3.0], [0.5, 0.0])


def test_batches_are_of_a_length_and_no_larger_than_allowed() -> None:
    lengths = [5, 1000, 7, 1500, 900, 6]
    batches = evaluation._batches(lengths)
    assert [index for batch in batches for index in batch] == sorted(range(6), key=lengths.__getitem__)
    assert all(len(batch) * max(lengths[index] for index in batch) <= evaluation.BATCH_TOKENS for batch in batches)
    assert len(batches) == 3
    # One that is too long has a batch of its own.
    assert evaluation._batches([5000, 1]) == [[1], [0]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_batches_give_each_row_what_it_gets_alone(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", 30)
    tokenizer: Any = base_models.load_tokenizer(str(encoder))
    model = tiny.model("AutoModelForSequenceClassification", "bert", vocab_size=len(tokenizer), num_labels=2)
    target = Target(SEQUENCE, ("a", "b"), "single-label", 64)
    rows: list[Row] = [{"text": "good film " * (1 + place * 5 % 7), "label": "ab"[place % 2]} for place in range(7)]
    together = evaluation.evaluate(model, tokenizer, target, rows, False)
    alone = [evaluation.evaluate(model, tokenizer, target, [row], False) for row in rows]
    assert torch.allclose(torch.tensor(together.scores), torch.tensor([one.scores[0] for one in alone]), atol=1e-5)
    assert len(encode(tokenizer, target, rows)) == len(together.losses)
