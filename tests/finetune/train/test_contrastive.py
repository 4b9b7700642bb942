"""The loss of embeddings, and its batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve import checkpoint
from tuneserve.finetune.data.tokens import Target, encode
from tuneserve.finetune.model import base_models
from tuneserve.finetune.train import contrastive

from .conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_the_loss_is_that_of_the_right_passage_among_all() -> None:
    queries, passages = torch.tensor([[3.0, 0], [0, 2]]), torch.tensor([[1.0, 0.9], [0.9, 1], [4, 4]])
    cosines = torch.tensor([[1, 0.9], [0.9, 1]]) / 1.81**0.5
    scores = 20 * torch.hstack([cosines, torch.full((2, 1), 0.5**0.5)])
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1]))
    assert float(contrastive.loss(queries, passages, torch.zeros(2, 3).bool())) == pytest.approx(float(expected))
    scores[0, 1] = -torch.inf
    masked = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1]))
    found = contrastive.loss(queries, passages, torch.tensor([[False, True, False], [False] * 3]))
    assert float(found) == pytest.approx(float(masked))
    assert masked < expected - 0.01


def test_a_batch_has_queries_and_all_passages(encoder: Path) -> None:
    tokenizer = base_models.load_tokenizer(str(encoder))
    tokenizer.padding_side = "left"
    rows = [
        {"query": "who", "positive": "anna lives in berlin", "negatives": ["john", "the sky"]},
        {"query": "what was good", "positive": "the film"},
        {"query": "what was great", "positive": "the film", "negatives": ["the story"]},
        {"query": "who", "positive": "john"},
    ]
    target = Target("embedding", (), "single-label", 64, pooling="mean", prompts={"query": "what "})
    batch = contrastive.collate(tokenizer, list(encode(tokenizer, target, rows)))
    texts = tokenizer.batch_decode(batch["passages"]["input_ids"], skip_special_tokens=True)
    assert texts == ["anna lives in berlin", "the film", "the film", "john", "john", "the sky", "the story"]
    assert tokenizer.batch_decode(batch["queries"]["input_ids"], skip_special_tokens=True)[0] == "what who"
    assert batch["passages"]["attention_mask"][:, 0].all(), "padded on the right"
    # Rows 0 and 3 ask the same; the answer of row 3 is a negative of row 0, but it is also its answer.
    assert batch["not_negative"].nonzero().tolist() == [[0, 3], [1, 2], [2, 1], [3, 0], [3, 4]]


@pytest.mark.train
def test_first_dimensions_are_trained_too(tune: Run, pairs: Path) -> None:
    given: dict[str, Any] = {"task": "embedding", "train": str(pairs), "pooling": "mean", "validation_size": 0.2}

    def metrics(name: str, **more: Any) -> Mapping[str, float]:
        manifest = checkpoint.load(tune(name, **given, epochs=4, **more))
        return manifest.lineage[1].metrics

    measured = metrics("both", matryoshka=[2])
    whole, both = metrics("whole")["train_loss"], measured["train_loss"]
    # Two numbers can't tell as many passages apart as all of them.
    assert both > whole + 0.05
    assert 0 < measured["2 dimensions/ndcg@10"] != measured["ndcg@10"]
