"""Packing: several short rows in one sequence, to reduce padding. Positions restart with each row.

Given such positions and no mask, transformers builds a mask in which no row attends to another. Models without
attention, or with positions of their own, don't keep to that: `check` tries it before training.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import pack_dataset

from tuneserve.checkpoint.rows import Row
from tuneserve.errors import UserError
from tuneserve.finetune.data.disk_rows import DiskRows
from tuneserve.finetune.data.tokens import IGNORED

# Rows in memory: a multiple of the thousand that TRL packs together, so that the result is that of all at once.
_AT_ONCE = 10_000
# Logits may differ only because sums are computed in another order.
_TOLERANCE = 1e-3


def packed(encoded: Sequence[Row], max_length: int) -> DiskRows:
    """Returns `input_ids`, `labels` and `position_ids` of fewer, longer rows, none longer than `max_length`.

    Best fit, longest rows first, a thousand rows at a time: each goes into the fullest sequence that has room for it.
    """
    starts = range(0, len(encoded), _AT_ONCE)
    return DiskRows(row for start in starts for row in _packed(encoded[start : start + _AT_ONCE], max_length))


def _packed(encoded: Sequence[Row], max_length: int) -> Iterator[Row]:
    columns = {name: [row[name] for row in encoded] for name in ("input_ids", "labels")}
    together = pack_dataset(Dataset.from_dict(columns), max_length)
    for row in together:
        positions = [place for length in row["seq_lengths"] for place in range(length)]
        yield {"input_ids": row["input_ids"], "labels": row["labels"], "position_ids": positions}


def collate(rows: Sequence[Row], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Returns a batch without a mask: the padding of a sequence is one more packed row, which no other row sees."""
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, filling: Sequence[int]) -> torch.Tensor:
        return torch.tensor([[*row[name], *filling[: longest - len(row[name])]] for row in rows])

    return {
        "input_ids": filled("input_ids", [pad_token_id] * longest),
        "labels": filled("labels", [IGNORED] * longest),
        "position_ids": filled("position_ids", range(longest)),
    }


def check(model: Any) -> None:
    """Raises UserError for a model in which packed rows attend to each other."""
    ids = torch.tensor([[3, 5, 4, 6, 5, 3, 4]], device=model.device)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]], device=model.device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = model(input_ids=ids[:, 3:], use_cache=False).logits
            together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 3:]
        apart = bool((alone - together).abs().max() <= _TOLERANCE * alone.abs().max())
    except TypeError:
        # The model takes no position_ids.
        apart = False
    model.train(training)
    if not apart:
        raise UserError(f"packing: in {type(model).__name__}, packed rows attend to each other", "set packing: false")
