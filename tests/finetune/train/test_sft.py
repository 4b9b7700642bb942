"""The loss of generation: that of the model itself, however little of it is computed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.finetune import config
from tuneserve.finetune.data.tokens import IGNORED, Target
from tuneserve.finetune.model import base_models
from tuneserve.finetune.train import training

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

TARGET = Target("generation", (), "single-label", 64)
# Prompts and answers of several lengths, one of them cut before its answer begins.
LENGTHS = [(5, 4), (3, 9), (7, 1), (9, 0)]


def encoded() -> list[dict[str, Any]]:
    rows = []
    for row, (prompt, answer) in enumerate(LENGTHS):
        ids = [2 + (row * 31 + place * 7) % 200 for place in range(prompt + answer)]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * prompt + ids[prompt:]})
    return rows


@pytest.fixture
def trainer(chat: Path, tmp_path: Path) -> Any:
    """One that is about to train the tiny Llama."""
    values = {"task": "generation", "base_model": str(chat), "train": "t.jsonl", "output": "out", "method": "full"}
    settings = config.parse(values, tmp_path)
    tokenizer = base_models.load_tokenizer(str(chat))
    model, _ = base_models.load_model(TARGET, str(chat), tokenizer.pad_token_id)
    run = training.Run(model, tokenizer, encoded(), [], TARGET, settings, bf16=False, directory=tmp_path)
    return training._trainer(run)


def test_rows_are_read_from_where_they_are(trainer: Any) -> None:
    """And not from a copy in memory, which a Dataset would be."""
    assert trainer.train_dataset == encoded()
    assert [row["input_ids"].shape[0] for row in trainer.get_train_dataloader()] == [len(LENGTHS)]


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("items", [None, 28])
def test_the_loss_is_the_models_own(trainer: Any, items: int | None) -> None:
    batch = trainer.data_collator(encoded())
    given = {} if items is None else {"num_items_in_batch": torch.tensor(items)}
    expected = trainer.model(**batch, **given).loss
    loss = trainer.compute_loss(trainer.model, dict(batch), **given)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    before, after = gradients(trainer.model, expected), gradients(trainer.model, loss)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)


def test_a_batch_without_an_answer_counts_nothing(trainer: Any) -> None:
    loss = trainer.compute_loss(trainer.model, dict(trainer.data_collator(encoded()[-1:])))
    assert loss.item() == 0
    assert not gradients(trainer.model, loss).any()


def test_no_scores_are_computed_where_no_answer_is(trainer: Any) -> None:
    seen: list[int] = []
    head = trainer.model.get_output_embeddings()
    with head.register_forward_hook(lambda _module, _given, scores: seen.append(scores[..., 0].numel())):
        trainer.compute_loss(trainer.model, dict(trainer.data_collator(encoded())))
    assert seen == [sum(answer for _, answer in LENGTHS)]
