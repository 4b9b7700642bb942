"""The rows that a model is calibrated with, and those that attempts are chosen on: some that training saw, and never
any that the quality is measured on.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tuneserve import examples
from tuneserve.checkpoint import sha256_file
from tuneserve.errors import UserError
from tuneserve.evaluation.evaluate import check_rows
from tuneserve.evaluation.measurement import batches
from tuneserve.rows import Row, input_key, read
from tuneserve.v1 import checkpoint_pb2 as pb

# Of one row: longer ones are cut, as attention costs their square.
TOKENS = 2048
_BATCH_TOKENS = 4096
CHOOSING = 256


def load(directory: Path, manifest: pb.Checkpoint, given: Path | None, measured: Sequence[Row]) -> list[Row]:
    """Returns the rows of the file `given`, or those that the checkpoint keeps: none where it keeps none.

    Raises UserError for rows that don't fit the task, or whose input is among those that the quality is `measured`
    on, or among the checkpoint's held-out ones: it would be measured too well.
    """
    split, held_out = manifest.calibration_split, list(measured)
    if manifest.test_split.path:
        held_out += read(directory / manifest.test_split.path)
    path = given or (directory / split.path if split.path else None)
    if path is None:
        return []
    if not given and sha256_file(path) != split.sha256:
        raise UserError(f"{path}: not the rows that the checkpoint names", "give rows with --calibration FILE.jsonl")
    rows = read(path)
    try:
        check_rows(manifest, rows)
    except UserError as error:
        raise UserError(f"{path}: {error}", error.hint) from None
    known = {input_key(row) for row in held_out}
    for number, row in enumerate(rows, start=1):
        if input_key(row) in known:
            raise UserError(
                f"{path}: row {number} is among the rows that the quality is measured on",
                "calibrate with rows of the training data",
            )
    return rows


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Returns the rows to calibrate with, and every second one, CHOOSING at most, to choose among attempts on.

    Training saw these, too: a model answers them better than others, and what counts is how much of that is lost.
    """
    choosing = set(range(1, len(rows), 2)[:CHOOSING])
    return [row for i, row in enumerate(rows) if i not in choosing], [rows[i] for i in sorted(choosing)]


def encode(tokenizer: Any, manifest: pb.Checkpoint, rows: Sequence[Row]) -> list[dict[str, list[int]]]:
    """Returns what the model gets of each row, answer included, cut to what it was trained at."""
    limit = min(TOKENS, manifest.max_length or TOKENS)
    return [{key: ids[:limit] for key, ids in _encoded(tokenizer, row, limit).items()} for row in rows]


def tensors(encoded: Sequence[dict[str, list[int]]]) -> Iterator[dict[str, Any]]:
    """Yields batches for the model's forward: rows of one length each, so that no padding is calibrated with."""
    import torch

    for length, same in groupby(sorted(encoded, key=_length), key=_length):
        for batch in batches(list(same), max(1, _BATCH_TOKENS // max(1, length))):
            yield {key: torch.tensor([row[key] for row in batch]) for key in batch[0]}


def _length(row: dict[str, list[int]]) -> int:
    return len(row["input_ids"])


def _encoded(tokenizer: Any, row: Row, limit: int) -> dict[str, list[int]]:
    if "messages" in row or "prompt" in row:
        ids = examples.example(tokenizer, row, limit).ids
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}
    # Cut here too, so that the special token at the end stays.
    return dict(tokenizer(row["text"], row.get("text_pair"), truncation=True, max_length=limit))
