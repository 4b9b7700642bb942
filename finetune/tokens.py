"""Canonical rows as token ids, the same for training, evaluation and merge checks.

IGNORED marks positions that no loss and no metric counts.
"""

from array import array
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tuneserve import examples
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
        return Spool(_words(tokenizer, rows, target.labels, target.max_length))
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


def _words(tokenizer: Any, rows: Iterable[Row], labels: Sequence[str], max_length: int) -> Iterator[Row]:
    """Every token of a word carries its tag; after the first, B-X goes on as I-X.

    The server sees text, not words: a tokenizer splits "@name:" in three, and each part is asked for its label.
    """
    index = {label: position for position, label in enumerate(labels)}
    for row in rows:
        item, places = words(tokenizer, row["tokens"], max_length)
        before: int | None = None
        targets = []
        for word in places:
            tag = row["tags"][word] if word is not None else None
            if tag is not None and word == before and tag.startswith("B-"):
                tag = "I-" + tag[2:]
            targets.append(IGNORED if tag is None else index[tag])
            before = word
        yield item | {"labels": targets}


def words(tokenizer: Any, tokens: Sequence[str], max_length: int | None = None) -> tuple[Row, list[int | None]]:
    """Returns words as token ids, joined by spaces as the server sees them, and which word each token is of.

    Tokenized one by one, most tokenizers of bytes would give them the ids of words without a space before them. A token
    of no word (special ones, a space alone) has None.
    """
    text = " ".join(tokens)
    item = dict(tokenizer(text, truncation=max_length is not None, max_length=max_length, return_offsets_mapping=True))
    starts = list(accumulate((len(token) + 1 for token in tokens), initial=0))
    places = []
    for start, end in item.pop("offset_mapping"):
        piece = text[start:end]
        first = start + len(piece) - len(piece.lstrip())
        places.append(bisect(starts, first) - 1 if piece.strip() else None)
    return item, places


def _answer(tokenizer: Any, row: Row, max_length: int) -> Row:
    found = examples.example(tokenizer, row, max_length)
    targets = [id_ if counts else IGNORED for id_, counts in zip(found.ids, found.counted, strict=True)]
    return {"input_ids": found.ids, "attention_mask": [1] * len(found.ids), "labels": targets}
