"""Training for ranking: a cross-encoder reads a query with a passage, and gives the pair one number.

bce        each pair by itself: is it right? The number is the logit of that
listwise   the right passage of a query among its wrong ones: softmax over them (ListNet's top one; Cao et al. 2007)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Trainer

from tuneserve.checkpoint.rows import Row
from tuneserve.finetune.train.contrastive import PairTrainer


def trainer(run: Any, common: dict[str, Any]) -> Trainer:
    """Returns the trainer of a `training.Run`; `common` are the arguments of every trainer."""
    return RankingTrainer(run, common, collate, kind=run.config.ranking_loss)


def collate(tokenizer: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the pairs, and the row of each: first each row's right pair, in the rows' order, then all others."""
    pairs = [{key: row[key] for key in tokenizer.model_input_names if key in row} for row in rows]
    others = [(place, one) for place, row in enumerate(rows) for one in row["documents"]]
    padded = tokenizer.pad([*pairs, *(one for _, one in others)], padding_side="right", return_tensors="pt")
    return {"pairs": padded, "rows": torch.tensor([*range(len(rows)), *(place for place, _ in others)])}


class RankingTrainer(PairTrainer):
    """Trainer with the losses of this module."""

    def __init__(self, *given: Any, kind: str) -> None:
        super().__init__(*given)
        self._loss = {"bce": pointwise, "listwise": listwise}[kind]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See Trainer."""
        total = self._loss(model(**inputs["pairs"]).logits[:, 0].float(), inputs["rows"])
        return (total, None) if return_outputs else total


def pointwise(scores: Tensor, rows: Tensor) -> Tensor:
    """Returns the mean cross-entropy of pairs in the order of `collate`."""
    right = (torch.arange(len(rows), device=rows.device) <= rows.max()).float()
    return functional.binary_cross_entropy_with_logits(scores, right)


def listwise(scores: Tensor, rows: Tensor) -> Tensor:
    """Returns the mean over the rows of the right pair's cross-entropy among the row's pairs."""
    count = int(rows.max()) + 1
    own = rows[None] == torch.arange(count, device=rows.device)[:, None]
    lists = scores.expand(count, -1).masked_fill(~own, -torch.inf)
    return functional.cross_entropy(lists, torch.arange(count, device=rows.device))
