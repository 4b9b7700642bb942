"""Checked rows as token ids, the same for training, evaluation and merge checks.

IGNORED marks positions that no loss and no metric counts.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tuneserve.checkpoint import encoders, entities, examples
from tuneserve.checkpoint.rows import Row
from tuneserve.evaluation import preferences
from tuneserve.finetune.data.disk_rows import DiskRows, View

IGNORED = -100


@dataclass(frozen=True)
class Target:
    """The outputs of a model, and how many tokens of a row it reads."""

    task: str
    labels: tuple[str, ...]  # the position is the class index; empty for tasks without labels
    problem_type: str  # of sequence classification: single-label, multi-label or regression
    max_length: int  # tokens
    temperature: float = 1.0  # logits are divided by it before they become probabilities
    pooling: str = ""  # of embedding: see checkpoint/encoders.py
    prompts: Mapping[str, str] = field(default_factory=dict)  # of embedding, by name
    sizes: tuple[int, ...] = ()  # of embedding: numbers of first dimensions that are vectors of their own


def encode(tokenizer: Any, target: Target, rows: Iterable[Row], train_on: str = "last-turn") -> DiskRows:
    """Returns `input_ids`, `attention_mask`, `labels` and the model's other inputs, one dict a row, not padded.

    A row of embedding is its query, with the passages as `documents`: dicts of the same kind, the right one first. One
    of ranking is the query with the right passage, and `documents` are the query with each of the others.
    With `train_on: all-turns` every answer of a conversation has labels, and some conversations give several dicts.
    Metrics are always of the last answer, because a later measurement does not know how the model was trained.
    """
    if target.task == "sequence-classification":
        return DiskRows(_sequences(tokenizer, rows, target.labels, target.max_length))
    if target.task == "token-classification":
        return DiskRows(_entities(tokenizer, rows, target.labels, target.max_length))
    if target.task == "embedding":
        return DiskRows(_queries(tokenizer, rows, target))
    if target.task == "ranking":
        return DiskRows(_pairs(tokenizer, rows, target.max_length))
    return DiskRows(_answers(tokenizer, rows, target.max_length, train_on))


def usable(
    tokenizer: Any, target: Target, rows: Sequence[Row], long_prompts: str
) -> tuple[Sequence[Row], Counter[str]]:
    """Returns the rows of generation that can be trained on, and the number of the others, by reason.

    Both answers of a pair need the same prompt, so that it is never truncated.
    """
    kept, left_out = array("q"), Counter[str]()
    for place, row in enumerate(rows):
        found = [examples.example(tokenizer, one, target.max_length) for one in preferences.answers(row)]
        if not all(any(one.counted) for one in found):
            left_out["answer without tokens"] += 1
        elif any(one.is_truncated for one in found) and (long_prompts == "drop" or target.task == "preference"):
            left_out["prompt too long"] += 1
        else:
            kept.append(place)
    return (View(rows, np.array(kept, np.int64)) if left_out else rows), left_out


def lengths(encoded: Iterable[Row]) -> Sequence[int]:
    """Returns the number of tokens of each row, or of its longest text, in 4 bytes each."""
    texts = ((row, *row.get("documents", ())) for row in encoded)
    return array("i", (max(len(one["input_ids"]) for one in some) for some in texts))


def _sequences(tokenizer: Any, rows: Iterable[Row], labels: Sequence[str], max_length: int) -> Iterator[Row]:
    index = {label: position for position, label in enumerate(labels)}
    for row in rows:
        item = dict(tokenizer(row["text"], row.get("text_pair"), truncation=True, max_length=max_length))
        if isinstance(row.get("label"), float):
            item["labels"] = row["label"]
        elif "labels" in row:
            # Floats, because the loss is the binary cross-entropy of each label.
            item["labels"] = [float(label in row["labels"]) for label in labels]
        else:
            item["labels"] = index[row["label"]]
        yield item


def texts(tokenizer: Any, given: Iterable[tuple[str, ...]], max_length: int) -> Iterator[Row]:
    """Yields the model's inputs for each text, or pair of texts."""
    for one in given:
        yield dict(tokenizer(*one, truncation=True, max_length=max_length))


def _pairs(tokenizer: Any, rows: Iterable[Row], max_length: int) -> Iterator[Row]:
    for row in rows:
        pairs = ((row["query"], passage) for passage in (row["positive"], *row.get("negatives", ())))
        first, *documents = texts(tokenizer, pairs, max_length)
        yield first | {"documents": documents}


def _queries(tokenizer: Any, rows: Iterable[Row], target: Target) -> Iterator[Row]:
    query, passage = (encoders.prompt(target.prompts, names) for names in (encoders.QUERY, encoders.PASSAGE))
    for row in rows:
        given = [query + row["query"], *(passage + text for text in (row["positive"], *row.get("negatives", ())))]
        first, *documents = texts(tokenizer, ((text,) for text in given), target.max_length)
        yield first | {"documents": documents}


def _entities(tokenizer: Any, rows: Iterable[Row], labels: Sequence[str], max_length: int) -> Iterator[Row]:
    """Every token is labelled with the tag of its entity; special tokens are ignored."""
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
    """Returns how many entities of a row begin or end inside a token: their tokens cover another span."""
    spans = entities.spans_of(row)
    _, offsets = with_offsets(tokenizer, row["text"])
    tags = [(tag, offset) for tag, offset in zip(entities.tags(spans, offsets), offsets, strict=True) if tag]
    found = entities.found(row["text"], [tag for tag, _ in tags], [offset for _, offset in tags])
    return len(set(spans) - set(found))


def _answers(tokenizer: Any, rows: Iterable[Row], max_length: int, train_on: str) -> Iterator[Row]:
    for row in rows:
        if train_on == "all-turns":
            found = examples.of_all_turns(tokenizer, row, max_length)
        else:
            found = [examples.example(tokenizer, row, max_length)]
        for one in found:
            targets = [id_ if counts else IGNORED for id_, counts in zip(one.ids, one.counted, strict=True)]
            yield {"input_ids": one.ids, "attention_mask": [1] * len(one.ids), "labels": targets}
