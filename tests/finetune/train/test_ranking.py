"""The losses of a cross-encoder, and its batches."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tuneserve.finetune.data.tokens import Target, encode
from tuneserve.finetune.model import base_models
from tuneserve.finetune.train import ranking

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

# Two rows: the first has two wrong passages, the second one.
SCORES, ROWS = torch.tensor([2.0, -1, 0, 1, 3]), torch.tensor([0, 1, 0, 0, 1])


def test_each_pair_by_itself() -> None:
    expected = functional.binary_cross_entropy_with_logits(SCORES, torch.tensor([1.0, 1, 0, 0, 0]))
    assert float(ranking.pointwise(SCORES, ROWS)) == pytest.approx(float(expected))


def test_the_right_pair_among_those_of_its_row() -> None:
    lists = [torch.tensor([2.0, 0, 1]), torch.tensor([-1.0, 3])]
    expected = sum(-float(one.log_softmax(0)[0]) for one in lists) / 2
    assert float(ranking.listwise(SCORES, ROWS)) == pytest.approx(expected)


def test_a_batch_has_the_right_pairs_first(encoder: Path) -> None:
    tokenizer = base_models.load_tokenizer(str(encoder))
    rows = [
        {"query": "who", "positive": "anna", "negatives": ["john", "the sky"]},
        {"query": "what was good", "positive": "the film"},
        {"query": "where", "positive": "berlin", "negatives": ["paris"]},
    ]
    encoded = list(encode(tokenizer, Target("ranking", ("score",), "single-label", 64), rows))
    batch = ranking.collate(tokenizer, encoded)
    texts = tokenizer.batch_decode(batch["pairs"]["input_ids"], skip_special_tokens=True)
    assert texts == ["who anna", "what was good the film", "where berlin", "who john", "who the sky", "where paris"]
    assert batch["rows"].tolist() == [0, 1, 2, 0, 0, 2]
    # Query and passage are told apart.
    assert batch["pairs"]["token_type_ids"][0].tolist()[:6] == [0, 0, 0, 1, 1, 0]
