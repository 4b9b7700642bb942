"""Rows of preferences: two answers to a prompt, of which one is better, or one answer with a thumb up or down.

In our schema each is a row of generation that also says how good its answer is (`checkpoint.rows`). So whatever reads
rows of generation can read these.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tuneserve.checkpoint import examples
from tuneserve.checkpoint.rows import Row, input_key
from tuneserve.errors import UserError
from tuneserve.evaluation import preferences
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.data import schema
from tuneserve.finetune.data.disk_rows import DiskRows
from tuneserve.finetune.data.schema import BadRow

_BOOLEANS = {"true": True, "false": False}  # a CSV cell


def row(raw: Row, config: FinetuneConfig) -> Row:
    """Returns a raw row in our schema. Raises BadRow."""
    if "chosen" in raw or "rejected" in raw:
        chosen, rejected = (_answered(raw, config, name) for name in ("chosen", "rejected"))
        if input_key(chosen) != input_key(rejected):
            raise BadRow("chosen and rejected answer different prompts")
        if chosen == rejected:
            raise BadRow("chosen and rejected are the same answer")
        return chosen | {"rejected": rejected["completion"] if "completion" in rejected else rejected["messages"][-1]}
    if "label" not in raw:
        raise BadRow(f"no chosen and rejected, and no label; found {', '.join(map(str, raw))} (map with `columns`)")
    label = raw["label"]
    label = _BOOLEANS.get(label.lower(), label) if isinstance(label, str) else label
    if not isinstance(label, bool):
        raise BadRow(f"label is {label!r}, not true or false")
    return _answered(raw, config, "completion") | {"label": label}


def _answered(raw: Row, config: FinetuneConfig, name: str) -> Row:
    """Returns the row of generation whose answer is in the column `name`: a text, or messages."""
    if name not in raw:
        raise BadRow(f"no {name}; found {', '.join(map(str, raw))} (map with `columns`)")
    prompt, answer = raw.get("prompt"), raw[name]
    given = {**raw, "completion": answer} if config.prompt_template else {"prompt": prompt, "completion": answer}
    if isinstance(answer, list) or isinstance(prompt, list):
        turns = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
        # Some data sets have whole conversations, which begin with their prompts.
        is_whole = turns and isinstance(turns[0], dict) and turns[0].get("role") != "assistant"
        before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        given = {key: raw[key] for key in ("tools", "documents") if key in raw}
        given["messages"] = turns if is_whole else [*before, *turns]
    try:
        return schema.generation_row(given, config)
    except BadRow as error:
        raise BadRow(f"{name}: {error}") from None


def check(config: FinetuneConfig, **splits: Sequence[Row]) -> None:
    """Raises UserError if the rows of a run are of both kinds, or if single answers are all good or all bad."""
    kinds = {"rejected" in row for rows in splits.values() for row in rows}
    if len(kinds) > 1:
        raise UserError(
            "some rows are pairs of answers, and others single answers with a label",
            "train on one kind: chosen and rejected, or completion and label",
        )
    if kinds == {True}:
        return
    for name, rows in splits.items():
        labels = {row["label"] for row in rows}
        if len(labels) == 1:
            raise UserError(
                f"the label of every {name} row is {'true' if labels == {True} else 'false'}",
                "give rows with the other label, too",
            )
    if config.batch_size < 2:
        raise UserError("batch_size is 1", "single answers are compared with others of their batch: give 2 or more")


def encode(tokenizer: Any, rows: Iterable[Row], max_length: int) -> DiskRows:
    """Returns the answers as token ids: `input_ids`, of which the first `start` are the prompt's; of a pair also the
    rejected answer in `documents`, a list of one dict of the same kind; of a single answer its `label`.
    """
    return DiskRows(_encoded(tokenizer, rows, max_length))


def _encoded(tokenizer: Any, rows: Iterable[Row], max_length: int) -> Iterator[Row]:
    for row in rows:
        both = (examples.example(tokenizer, one, max_length) for one in preferences.answers(row))
        first, *others = ({"input_ids": one.ids, "start": one.start} for one in both)
        yield first | ({"documents": others} if others else {"label": row["label"]})
