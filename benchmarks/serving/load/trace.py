"""Traces of the calls that a server had: when each came, and how many tokens its input and its answer had.

Two published formats. Mooncake's, JSONL: `timestamp` in milliseconds, `input_length`, `output_length`, and `hash_ids`,
one for each 512 tokens of the input; inputs that begin with the same ids begin with the same tokens. And the CSV of
Azure's LLM inference traces: `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from tuneserve.errors import UserError

BLOCK_TOKENS = 512


@dataclass(frozen=True)
class Row:
    """One call."""

    due: float  # seconds from the first one
    input_tokens: int
    output_tokens: int
    blocks: Sequence[int] = ()  # ids of the input's blocks; empty if not known


def read(path: Path) -> list[Row]:
    """Returns the calls of a trace, the earliest first. Raises UserError."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = sorted(_azure(file) if path.suffix == ".csv" else _mooncake(file), key=lambda row: row.due)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no trace: {type(error).__name__}: {error}",
            "give Mooncake's JSONL (timestamp, input_length, output_length), or Azure's .csv",
        ) from None
    if not rows:
        raise UserError(f"{path}: no calls in it")
    return [replace(row, due=row.due - rows[0].due) for row in rows]


def arriving(path: Path, seconds: float) -> list[float]:
    """Returns the seconds at which the calls of a trace come, up to `seconds`. Raises UserError if it is shorter."""
    times = [row.due for row in read(path)]
    if times[-1] < seconds:
        raise UserError(
            f"{path}: lasts {times[-1]:.4g} s, less than --warmup and --seconds, {seconds:.4g} s",
            "measure a shorter time, or give a --rate: then only the lengths are the trace's",
        )
    return [due for due in times if due < seconds]


def _mooncake(file: Iterator[str]) -> Iterator[Row]:
    for line in file:
        call = json.loads(line)
        due = call["timestamp"] / 1000
        yield Row(due, call["input_length"], call["output_length"], tuple(call.get("hash_ids", ())))


def _azure(file: Iterator[str]) -> Iterator[Row]:
    for call in csv.DictReader(file):
        due = datetime.fromisoformat(call["TIMESTAMP"]).timestamp()
        yield Row(due, int(call["ContextTokens"]), int(call["GeneratedTokens"]))
