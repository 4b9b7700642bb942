"""Training as the libraries document it."""

from dataclasses import replace
from pathlib import Path

import pytest

from tuneserve.benchmarks.training import plain

from .test_beside_trainer import GIVEN


def test_the_plain_trainer_puts_rows_of_a_length_together(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    lengths = [2, 50, 3, 51, 2, 52, 3, 50] * 16
    rows = Dataset.from_list([{"input_ids": [1] * length, "labels": 0} for length in lengths])
    arguments = TrainingArguments(**plain.settings(replace(GIVEN, output=str(tmp_path))))
    trainer = Trainer(model=torch.nn.Linear(1, 1), args=arguments, train_dataset=rows)
    order = [lengths[index] for index in trainer._get_train_sampler()]
    batches = [order[start : start + 8] for start in range(0, len(order), 8)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert sorted(order) == sorted(lengths)
    # In random order nearly every batch has a long row, and half of what is computed is padding.
    assert padded < 1.3 * sum(lengths)
