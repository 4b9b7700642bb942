"""Raw rows checked into their canonical form (tuneserve.rows), all problems at once; then train and test.

Nothing here needs torch or a tokenizer.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tuneserve import rows
from tuneserve.errors import UserError
from tuneserve.finetune import formats
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.rows import Row

SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Data:
    """Everything a run trains and is measured on."""

    train: list[Row]
    test: list[Row]
    labels: list[str]  # the position is the class index; empty for generation
    duplicates: int  # training rows dropped because their input is in the test rows

    def label_distribution(self) -> dict[str, float]:
        """Returns the share of each label in the training rows: of texts, or of entities for tokens."""
        counts = Counter(chain.from_iterable(map(_counted_labels, self.train)))
        total = sum(counts.values())
        names = dict.fromkeys(_entity_type(label) for label in self.labels if label != "O")
        return {name: counts[name] / total for name in names} if total else {}


def load(config: FinetuneConfig) -> Data:
    """Reads, checks and splits. The same files and settings always give the same rows in the same order.

    Raises UserError with the number of bad rows and the first of them as `file:line: reason`.
    """
    problems: list[str] = []
    train = _canonical(config, config.train, problems)
    test = _canonical(config, config.test, problems) if config.test else []
    labels = _labels(config, [row for _, row in train])
    if labels:
        problems += _unknown_labels(chain(train, test), set(labels))
    if problems:
        more = f"\n  and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise UserError(
            f"{len(problems)} bad rows in the data, nothing was trained:\n  "
            + "\n  ".join(problems[:SHOWN_PROBLEMS])
            + more,
            "correct or remove these rows",
        )
    return _split(config, [row for _, row in train], [row for _, row in test], labels)


def _canonical(config: FinetuneConfig, source: str, problems: list[str]) -> list[tuple[str, Row]]:
    """Returns (where, row) for the good rows and adds one line to `problems` for each bad one."""
    canonical = _CANONICAL[config.task]
    columns = dict(config.columns or {})
    good: list[tuple[str, Row]] = []
    seen = 0
    for where, raw in formats.read(source, config.format):
        seen += 1
        if isinstance(raw, str):
            problems.append(f"{where}: {raw}")
            continue
        missing = [name for name in columns.values() if name not in raw]
        # The rows of a file have the same columns: the first row tells of a wrong mapping.
        if seen == 1 and missing:
            raise UserError(
                f"{where}: no column {missing[0]}, which `columns` names", "found: " + ", ".join(map(str, raw))
            )
        mapped = raw | {ours: raw[theirs] for ours, theirs in columns.items() if theirs in raw}
        try:
            good.append((where, canonical(mapped, config)))
        except _BadRow as error:
            problems.append(f"{where}: {error}")
    if not seen:
        raise UserError(f"{source}: no rows")
    return good


class _BadRow(Exception):
    """Why a row can't be used."""


def _text(raw: Row, name: str) -> str:
    if name not in raw:
        raise _BadRow(f"no {name}; found {', '.join(map(str, raw))} (map with `columns`)")
    return _good_text(raw[name], name)


def _good_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _BadRow(f"{name} is not text but {type(value).__name__}")
    if not value.strip():
        raise _BadRow(f"{name} is blank")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _BadRow(f"{name} is not valid Unicode (half of a surrogate pair)") from None
    return value


def _label(value: Any, name: str) -> str:
    # Class numbers are common; true and false are what YAML and JSON make of yes and no.
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise _BadRow(f"{name} is {value}")
        return str(value)
    return _good_text(value, name)


def _sequence_row(raw: Row, config: FinetuneConfig) -> Row:
    row: Row = {"text": _text(raw, "text")}
    if raw.get("text_pair") is not None:
        row["text_pair"] = _text(raw, "text_pair")
    if config.problem_type == "single-label":
        if "label" not in raw:
            raise _BadRow(f"no label; found {', '.join(map(str, raw))} (map with `columns`)")
        return row | {"label": _label(raw["label"], "label")}
    labels = raw.get("labels")
    if isinstance(labels, str):
        # A CSV cell.
        labels = [name.strip() for name in labels.split("|") if name.strip()]
    if not isinstance(labels, list):
        raise _BadRow("labels is not a list (in CSV: names with | between)")
    return row | {"labels": sorted({_label(label, "labels") for label in labels})}


def _token_row(raw: Row, config: FinetuneConfig) -> Row:
    tokens, tags = raw.get("tokens"), raw.get("tags")
    if not isinstance(tokens, list) or not isinstance(tags, list):
        raise _BadRow("tokens and tags must be lists (map with `columns`)")
    if not tokens:
        raise _BadRow("tokens is empty")
    if len(tokens) != len(tags):
        raise _BadRow(f"{len(tokens)} tokens but {len(tags)} tags")
    words = [_good_text(token, f"token {number}") for number, token in enumerate(tokens, start=1)]
    return {"tokens": words, "tags": iob2([_label(tag, "tag") for tag in tags])}


def iob2(tags: Sequence[str]) -> list[str]:
    """Returns the tags with every entity beginning with B-, so that CoNLL's older IOB1 files can be used.

    Raises _BadRow for a tag that is not O, B-X or I-X.
    """
    fixed: list[str] = []
    for tag in tags:
        if tag != "O" and not (tag.startswith(("B-", "I-")) and len(tag) > 2):
            raise _BadRow(f"tag {tag!r} is not O, B-TYPE or I-TYPE")
        begins = tag.startswith("I-") and (not fixed or fixed[-1][2:] != tag[2:])
        fixed.append("B-" + tag[2:] if begins else tag)
    return fixed


def _generation_row(raw: Row, config: FinetuneConfig) -> Row:
    prompt, completion = raw.get("prompt"), raw.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return {"messages": _messages([*prompt, *completion])}
    if "messages" in raw:
        return {"messages": _messages(raw["messages"])}
    return {"prompt": _text(raw, "prompt"), "completion": _text(raw, "completion")}


def _messages(value: Any) -> list[Row]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise _BadRow("messages is not a list of {role, content}")
    messages = []
    for number, message in enumerate(value, start=1):
        if message.get("role") not in ("system", "user", "assistant"):
            raise _BadRow(f"message {number}: role is {message.get('role')!r}, not system, user or assistant")
        content = _good_text(message.get("content"), f"content of message {number}")
        messages.append({"role": message["role"], "content": content})
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise _BadRow("messages does not end with an assistant's answer to something")
    return messages


_CANONICAL: dict[str, Callable[[Row, FinetuneConfig], Row]] = {
    "sequence-classification": _sequence_row,
    "token-classification": _token_row,
    "generation": _generation_row,
}


def _labels(config: FinetuneConfig, train: Iterable[Row]) -> list[str]:
    """Returns the class names in their order: as given, or sorted. For tokens, O and then B- and I- of each type."""
    if config.task == "generation":
        return []
    found = sorted(set(chain.from_iterable(map(_counted_labels, train))))
    names = list(config.labels) if config.labels else found
    if config.task == "token-classification":
        if wrong := [name for name in names if name == "O" or name.startswith(("B-", "I-"))]:
            raise UserError(f"labels: {wrong[0]} is a tag", "give entity types, without O, B- and I-")
        return ["O", *(f"{prefix}-{name}" for name in names for prefix in "BI")] if names else []
    if len(names) < 2 and config.problem_type == "single-label":
        raise UserError(f"labels: only {len(names)} in the training data", "a classifier needs two or more")
    return names


def _counted_labels(row: Row) -> list[str]:
    """The labels of a row that count: its label or labels, or the type of each of its entities."""
    if "tags" in row:
        return [tag[2:] for tag in row["tags"] if tag.startswith("B-")]
    return row["labels"] if "labels" in row else [row["label"]] if "label" in row else []


def _entity_type(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _unknown_labels(placed: Iterable[tuple[str, Row]], labels: set[str]) -> Iterable[str]:
    types = {_entity_type(label) for label in labels - {"O"}} if "O" in labels else labels
    for where, row in placed:
        for label in _counted_labels(row):
            if label not in types:
                yield f"{where}: label {label!r} is not one of {', '.join(sorted(types))}"
                break


def _split(config: FinetuneConfig, train: list[Row], test: list[Row], labels: list[str]) -> Data:
    order = random.Random(config.seed)
    order.shuffle(train)
    if config.test:
        order.shuffle(test)
    else:
        assert config.test_size is not None
        train, test = stratified(train, config.test_size)
    test = test[: config.max_test_rows]
    held_out = {input_key(row) for row in test}
    kept = [row for row in train if input_key(row) not in held_out]
    duplicates = len(train) - len(kept)
    kept = kept[: config.max_train_rows]
    if not kept or not test:
        raise UserError(f"{len(kept)} rows to train on and {len(test)} to test on", "both need some: give more data")
    return Data(kept, test, labels, duplicates)


def stratified(shuffled: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Splits so that each label has about its share on both sides, however rare.

    Rows in order of their labels, then every n-th of them, is a stratified sample of exactly the wanted size.
    """
    order = sorted(range(len(shuffled)), key=lambda index: sorted(set(_counted_labels(shuffled[index]))))
    wanted = round(len(shuffled) * share)
    chosen = {order[int((index + 0.5) * len(order) / wanted)] for index in range(wanted)}
    train = [row for index, row in enumerate(shuffled) if index not in chosen]
    test = [row for index, row in enumerate(shuffled) if index in chosen]
    return train, test


def input_key(row: Row) -> str:
    """Returns what the model sees of a row, without the answer: equal keys in train and test would be a leak."""
    if "messages" in row:
        return rows.dumps({"messages": row["messages"][:-1]})
    return rows.dumps({key: row[key] for key in ("text", "text_pair", "tokens", "prompt") if key in row})
