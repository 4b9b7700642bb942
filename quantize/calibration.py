"""The rows for calibration, and those for choosing between attempts: training rows, never rows that the quality is
measured on.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tuneserve.checkpoint import encoders, examples, sha256_file
from tuneserve.checkpoint.rows import Row, input_key, read
from tuneserve.errors import UserError
from tuneserve.evaluation.evaluate import check_rows
from tuneserve.evaluation.measurement import batches
from tuneserve.v1 import checkpoint_pb2 as pb

# Tokens of one row: longer ones are truncated, because the cost of attention grows with the square of the length.
TOKENS = 2048
_BATCH_TOKENS = 4096
CHOOSING = 256


def load(directory: Path, manifest: pb.Checkpoint, given: Path | None, measured: Sequence[Row]) -> list[Row]:
    """Returns the rows of the file `given`, or those that the checkpoint keeps, if any.

    Raises UserError for rows that don't fit the task, and for rows whose input is among the `measured` ones or the
    checkpoint's held-out ones: the quality would be measured too high.
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
    """Returns the rows to calibrate with, and the rows to choose between attempts: every second one, at most CHOOSING.

    The model was trained on these and answers them better than others, but only the drop on them is compared.
    """
    choosing = set(range(1, len(rows), 2)[:CHOOSING])
    return [row for i, row in enumerate(rows) if i not in choosing], [rows[i] for i in sorted(choosing)]


def encode(tokenizer: Any, manifest: pb.Checkpoint, rows: Sequence[Row]) -> list[dict[str, list[int]]]:
    """Returns the model's inputs for each row, answer included, truncated to the length that it was trained at.

    A row of embedding has two: its query and its passage.
    """
    limit = min(TOKENS, manifest.max_length or TOKENS)
    encoded = (_encoded(tokenizer, one, limit) for row in rows for one in _parts(manifest, row))
    return [{key: ids[:limit] for key, ids in one.items()} for one in encoded]


def tensors(encoded: Sequence[dict[str, list[int]]]) -> Iterator[dict[str, Any]]:
    """Yields batches for the model's forward: rows of equal length, so that calibration sees no padding."""
    import torch

    for length, same in groupby(sorted(encoded, key=_length), key=_length):
        for batch in batches(list(same), max(1, _BATCH_TOKENS // max(1, length))):
            yield {key: torch.tensor([row[key] for row in batch]) for key in batch[0]}


def _length(row: dict[str, list[int]]) -> int:
    return len(row["input_ids"])


def _parts(manifest: pb.Checkpoint, row: Row) -> list[Row]:
    if manifest.task == pb.TASK_RANKING:
        return [{"text": row["query"], "text_pair": row["positive"]}]
    if manifest.task != pb.TASK_EMBEDDING:
        return [row]
    texts = (encoders.QUERY, row["query"]), (encoders.PASSAGE, row["positive"])
    return [{"text": encoders.prompt(manifest.prompts, names) + text} for names, text in texts]


def _encoded(tokenizer: Any, row: Row, limit: int) -> dict[str, list[int]]:
    if "messages" in row or "prompt" in row:
        ids = examples.example(tokenizer, row, limit).ids
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}
    # Truncated by the tokenizer, too, so that the special token at the end is kept.
    return dict(tokenizer(row["text"], row.get("text_pair"), truncation=True, max_length=limit))
