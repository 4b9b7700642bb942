"""Packed rows: all there, and to the model as if each were alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve import checkpoint
from tuneserve.errors import UserError
from tuneserve.finetune.data import packing
from tuneserve.finetune.data.tokens import IGNORED

from ... import tiny

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

LENGTHS = [(5, 4), (3, 9), (7, 1), (2, 2), (6, 3)]


def rows() -> list[dict[str, Any]]:
    found = []
    for row, (prompt, answer) in enumerate(LENGTHS):
        ids = [2 + (row * 31 + place * 7) % 60 for place in range(prompt + answer)]
        found.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return found


def small(kind: str) -> Any:
    sizes = {"state_size": 4} if kind == "mamba" else {"bos_token_id": 0, "eos_token_id": 1}
    return tiny.model("AutoModelForCausalLM", kind, **sizes)


def test_every_row_is_there_once() -> None:
    given, made = rows(), packing.packed(rows(), 16)
    assert len(made) < len(given)
    assert all(len(row["input_ids"]) <= 16 for row in made)
    starts = [
        (row["input_ids"][place:], row["labels"][place:], row["position_ids"][place:])
        for row in made
        for place, position in enumerate(row["position_ids"])
        if position == 0
    ]
    assert len(starts) == len(given)
    for row in given:
        length = len(row["input_ids"])
        [same] = [start for start in starts if start[0][:length] == row["input_ids"]]
        assert same[1][:length] == row["labels"]
        assert same[2][:length] == list(range(length))


def test_many_rows_come_out_as_if_all_were_packed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [rows()[(7 * n) % 11 % 5] for n in range(2500)]
    at_once = list(packing.packed(many, 16))
    monkeypatch.setattr(packing, "_AT_ONCE", 1000)
    assert list(packing.packed(many, 16)) == at_once
    # A thousand is what TRL packs together.
    monkeypatch.setattr(packing, "_AT_ONCE", 700)
    assert list(packing.packed(many, 16)) != at_once


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_loss_is_that_of_the_rows_alone(kind: str) -> None:
    model = small(kind).eval()
    packing.check(model)
    total, counted = 0.0, 0
    for row in rows():
        answers = sum(label != IGNORED for label in row["labels"])
        loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        total, counted = total + float(loss) * answers, counted + answers
    batch = packing.collate(packing.packed(rows(), 16), pad_token_id=0)
    assert (batch["labels"] == IGNORED).sum() > sum(prompt for prompt, _ in LENGTHS), "the test needs padding"
    assert float(model(**batch, use_cache=False).loss) == pytest.approx(total / counted, abs=1e-5)


def test_a_model_whose_rows_would_see_each_other() -> None:
    with pytest.raises(UserError, match="in MambaForCausalLM, packed rows attend to each other"):
        packing.check(small("mamba"))


def test_it_trains(run: Any, tmp_path: Path, chat: Path) -> None:
    lines = [f'{{"prompt": "say {number}:", "completion": "{"yes " * (number % 5)}yes"}}\n' for number in range(40)]
    (tmp_path / "talk.jsonl").write_text("".join(lines))
    given = {"task": "generation", "base_model": str(chat), "train": "talk.jsonl", "batch_size": 4, "epochs": 25}
    output = run(tmp_path, packing=True, learning_rate=1e-2, max_length=128, validation_size=0.2, **given)
    metrics = checkpoint.load(output).lineage
    assert metrics[-1].metrics["perplexity"] < 2.5
    # 29 rows of 8 to 29 tokens.
    assert metrics[1].metrics["train_steps"] == 50
