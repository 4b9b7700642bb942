"""Answers written in batches: each is the one that the model writes alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.checkpoint import examples
from tuneserve.checkpoint.rows import Row
from tuneserve.finetune.data.tokens import Target
from tuneserve.finetune.eval import writing
from tuneserve.finetune.model import base_models

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TARGET = Target("generation", (), "single-label", 64)
ROWS: list[Row] = [{"prompt": "good film " * (1 + place * 5 % 4), "completion": "x"} for place in range(5)]


@pytest.fixture
def loaded(chat: Path) -> tuple[Any, Any]:
    tokenizer = base_models.load_tokenizer(str(chat))
    return base_models.load_model(TARGET, str(chat), tokenizer.pad_token_id)[0].eval(), tokenizer


def test_batches_give_each_row_what_it_gets_alone(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "BATCH", 2)
    model, tokenizer = loaded
    together = writing.answers(model, tokenizer, TARGET, ROWS, 8)
    assert together == [writing.answers(model, tokenizer, TARGET, [row], 8)[0] for row in ROWS]
    assert len(set(together)) > 1
    # By hand, without padding and without a cache.
    ids = list(tokenizer(ROWS[0]["prompt"])["input_ids"])
    start = len(ids)
    while len(ids) < start + 8 and ids[-1] != tokenizer.eos_token_id:
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert together[0] == tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_a_prompt_leaves_room_for_its_answer(loaded: tuple[Any, Any]) -> None:
    """The model has 256 positions."""
    model, tokenizer = loaded
    row: Row = {"prompt": "".join(chr(97 + place % 26) for place in range(250)), "completion": "x"}
    long = Target("generation", (), "single-label", 256)
    assert len(examples.example(tokenizer, row, 256).ids) > 246
    found = writing.answers(model, tokenizer, long, [row], 100)
    assert found == writing.answers(model, tokenizer, long, [row | {"prompt": row["prompt"][-156:]}], 100)


def test_samples() -> None:
    talk: Row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert writing.samples([talk, {"prompt": "p", "completion": "c"}], ["x", "y"]) == [
        {"prompt": "q", "expected": "a", "answer": "x"},
        {"prompt": "p", "expected": "c", "answer": "y"},
    ]
