"""Canonical rows as token ids, the same for training, evaluation and merge checks.

IGNORED marks positions that no loss and no metric counts.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tuneserve import entities, examples
from tuneserve.finetune.spool import Spool
from tuneserve.rows import Row

IGNORED = -100


@dataclass(frozen=True)
class Target:
    """What a model is trained to answer, and how much of a row it sees."""

    task: str
    labels: tuple[str, ...]  # the position is the class index; empty for generation
    problem_type: str  # of sequence classification: single-label, multi-label or regression
    max_length: int  # tokens
    temperature: float = 1.0  # what logits are divided by before they become probabilities


def encode(tokenizer: Any, target: Target, rows: Iterable[Row]) -> Spool:
    """Returns `input_ids`, `attention_mask`, `labels` and what else the model wants, one dict a row, not padded."""
    if target.task == "sequence-classification":
        return Spool(_sequences(tokenizer, rows, target.labels, target.max_length))
    if target.task == "token-classification":
        return Spool(_entities(tokenizer, rows, target.labels, target.max_length))
    return Spool(_answer(tokenizer, row, target.max_length) for row in rows)


def lengths(encoded: Iterable[Row]) -> Sequence[int]:
    """Returns the number of tokens of each row, in 4 bytes each."""
    return array("i", (len(row["input_ids"]) for row in encoded))


def _sequences(tokenizer: Any, rows: Iterable[Row], labels: Sequence[str], max_length: int) -> Iterator[Row]:
    index = {label: position for position, label in enumerate(labels)}
    for row in rows:
        item = dict(tokenizer(row["text"], row.get("text_pair"), truncation=True, max_length=max_length))
        if isinstance(row.get("label"), float):
            item["labels"] = row["label"]
        elif "labels" in row:
            # Floats: the loss is binary cross-entropy of each label by itself.
            item["labels"] = [float(label in row["labels"]) for label in labels]
        else:
            item["labels"] = index[row["label"]]
        yield item


def _entities(tokenizer: Any, rows: Iterable[Row], labels: Sequence[str], max_length: int) -> Iterator[Row]:
    """Every token carries the tag of its entity; those that are no text of the row are ignored."""
    index = {label: position for position, label in enumerate(labels)}
    for row in rows:
        item, offsets = with_offsets(tokenizer, row["text"], max_length)
        tags = entities.tags(entities.spans_of(row), offsets)
        yield item | {"labels": [IGNORED if tag is None else index[tag] for tag in tags]}


def with_offsets(tokenizer: Any, text: str, max_length: int | None = None) -> tuple[Row, list[tuple[int, int]]]:
    """Returns a text as token ids, and where each token begins and ends in it; (0, 0) for special tokens."""
    item = dict(tokenizer(text, truncation=max_length is not None, max_length=max_length, return_offsets_mapping=True))
    return item, item.pop("offset_mapping")


def lost_entities(tokenizer: Any, row: Row) -> int:
    """Returns how many entities of a row begin or end inside a token: their tokens stand for another span."""
    spans = entities.spans_of(row)
    _, offsets = with_offsets(tokenizer, row["text"])
    tags = [(tag, offset) for tag, offset in zip(entities.tags(spans, offsets), offsets, strict=True) if tag]
    found = entities.found(row["text"], [tag for tag, _ in tags], [offset for _, offset in tags])
    return len(set(spans) - set(found))


def _answer(tokenizer: Any, row: Row, max_length: int) -> Row:
    found = examples.example(tokenizer, row, max_length)
    targets = [id_ if counts else IGNORED for id_, counts in zip(found.ids, found.counted, strict=True)]
    return {"input_ids": found.ids, "attention_mask": [1] * len(found.ids), "labels": targets}
