"""Training for embeddings: a query's vector comes near that of its passage, and away from all others in the batch.

The loss is sentence-transformers' MultipleNegativesRankingLoss (InfoNCE; van den Oord et al. 2018, Henderson et al.
2017), with a row's own negatives as further passages. With `matryoshka`, it is the mean of the losses of the whole
vector and of its first dimensions (Kusupati et al. 2022).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim
from torch import Tensor
from transformers import Trainer, TrainingArguments

from tuneserve.checkpoint.encoders import pooled
from tuneserve.checkpoint.rows import Row


def trainer(run: Any, common: dict[str, Any]) -> Trainer:
    """Returns the trainer of a `training.Run`; `common` are the arguments of every trainer."""
    return ContrastiveTrainer(run, common, collate, pooling=run.target.pooling, sizes=run.target.sizes)


def collate(tokenizer: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the queries, and the passages: each row's positive in the rows' order, then all negatives.

    `not_negative` [rows, passages] marks passages that are no negatives of a row, though they are another's: its own
    text, and positives of the same query.
    """
    passages = [row["documents"][0] for row in rows] + [one for row in rows for one in row["documents"][1:]]
    queries, texts = ([one["input_ids"] for one in some] for some in (rows, passages))
    right = [
        [
            place != other and (text == texts[place] or (other < len(rows) and queries[other] == queries[place]))
            for other, text in enumerate(texts)
        ]
        for place in range(len(rows))
    ]
    queried = [{key: row[key] for key in tokenizer.model_input_names if key in row} for row in rows]
    pad = partial(tokenizer.pad, padding_side="right", return_tensors="pt")
    return {"queries": pad(queried), "passages": pad(passages), "not_negative": torch.tensor(right)}


class PairTrainer(Trainer):  # type: ignore[misc]
    """Trainer of a `training.Run` for batches without labels, whose loss is a mean. `collate` makes them of rows."""

    def __init__(self, run: Any, common: dict[str, Any], collate: Callable[[Any, Sequence[Row]], Any]) -> None:
        super().__init__(
            model=run.model,
            # The columns of the rows are not arguments of the model.
            args=TrainingArguments(**common, remove_unused_columns=False),
            train_dataset=run.encoded,
            eval_dataset=run.validation or None,
            data_collator=partial(collate, run.tokenizer),
        )
        # Trainer has to divide the loss by the number of batches in a step.
        self.model_accepts_loss_kwargs = False

    def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[Tensor, None, None]:
        """See Trainer, which would look for labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None


class ContrastiveTrainer(PairTrainer):
    """Trainer with the loss of this module."""

    def __init__(self, *given: Any, pooling: str, sizes: Sequence[int]) -> None:
        super().__init__(*given)
        self._pooling = pooling
        self._sizes = (None, *sizes)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See Trainer."""
        queries, passages = (self._vectors(model, inputs[key]) for key in ("queries", "passages"))
        losses = [loss(queries[:, :size], passages[:, :size], inputs["not_negative"]) for size in self._sizes]
        total = torch.stack(losses).mean()
        return (total, None) if return_outputs else total

    def _vectors(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = pooled(model(**batch).last_hidden_state, batch["attention_mask"], self._pooling)
        return found


def loss(queries: Tensor, passages: Tensor, not_negative: Tensor) -> Tensor:
    """Returns the loss of vectors in the order of `collate`."""

    def similarity(first: Tensor, second: Tensor) -> Tensor:
        return cos_sim(first, second).masked_fill(not_negative, -torch.inf)

    by_row = [passages[: len(queries)], passages[len(queries) :]]
    found: Tensor = MultipleNegativesRankingLoss(None, similarity_fct=similarity).compute_loss_from_embeddings(
        [queries, *by_row], None
    )
    return found
