"""Tables for people, on stdout: the findings of `validate`, and the results of training."""

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tuneserve.checkpoint import examples
from tuneserve.evaluation import preferences, quality
from tuneserve.finetune import config as config_module
from tuneserve.finetune import preparation
from tuneserve.finetune.data import dataset
from tuneserve.finetune.data.tokens import Target, encode, lengths, lost_entities
from tuneserve.finetune.model import base_models
from tuneserve.v1 import checkpoint_pb2 as pb

# `validate` points out a label with this many times the rows of another.
_IMBALANCE = 5
_UNTRUNCATED = 1 << 30


def validate(path: Path, console: Console | None = None) -> dict[str, Any]:
    """Checks a YAML file, its data and its base model without training, prints what was found and returns it.

    The keys: train, test, validation (rows); duplicates (rows left out of training because they are held out);
    left_out (unusable rows, by reason); repeated (rows with another's input), contradictory (those of them with another
    answer); labels (share by name); lengths (tokens: median, 95 %, longest, and the share of rows past max_length);
    inexact (entities that begin or end inside a token). Raises UserError as finetune would.
    """
    console = console or Console()
    config = config_module.load(path)
    base_models.quiet()
    split = dataset.load(config)
    target, tokenizer = preparation.check(config, split)
    split = preparation.usable(config, split, target, tokenizer)
    longest = target.max_length
    counts = np.sort(np.fromiter((_length(tokenizer, row, target) for row in chain(split.train, split.test)), int))
    shares = split.label_distribution()
    truncated = int((counts > longest).sum())
    console.print(f"{path}: good. {config.task}, {config.method}, base model {config.public()['base_model']}")
    console.print(
        f"{len(split.train)} rows to train on, {len(split.test)} held out, "
        f"{split.duplicates} left out because they are held out too"
    )
    if split.left_out:
        console.print(dataset.left_out(split))
    if split.validation:
        console.print(f"{len(split.validation)} more rows for validation: they choose the best epoch")
    if config.continue_from:
        console.print(
            f"{split.replayed} of the rows to train on are old ones; {len(split.old.test)} stay held out as before"
        )
    repeated, contradictory = split.repeated()
    if repeated:
        console.print(f"{repeated} rows repeat the input of another, {contradictory} of them with another answer")
    if shares:
        table = Table("label", "share of training data")
        for label, share in shares.items():
            table.add_row(label, f"{share:6.1%}")
        console.print(table)
        if max(shares.values()) > _IMBALANCE * min(shares.values()):
            console.print("some labels are rare: `class_weights: balanced` gives all the same weight")
    if target.pooling:
        prompts = ", ".join(f"{name} {text!r}" for name, text in target.prompts.items()) or "none"
        console.print(f"pooling: {target.pooling}; prompts: {prompts}", markup=False)
    if config.task == "preference":
        console.print(_preferences(split))
    console.print(_histogram(counts, longest))
    console.print(f"{truncated} of {len(counts)} rows are longer than max_length ({longest}) and are truncated")
    inexact = 0
    if config.task == "token-classification":
        inexact = sum(lost_entities(tokenizer, row) for row in chain(split.train, split.test))
        count = sum(len(row["entities"]) for row in chain(split.train, split.test))
        console.print(f"{inexact} of {count} entities begin or end inside a token, and can't be found exactly")
    return {
        "train": len(split.train),
        "test": len(split.test),
        "validation": len(split.validation),
        "duplicates": split.duplicates,
        "left_out": dict(split.left_out),
        "repeated": repeated,
        "contradictory": contradictory,
        "labels": shares,
        "lengths": {
            "median": int(counts[len(counts) // 2]),
            "p95": int(counts[int(len(counts) * 0.95)]),
            "longest": int(counts[-1]),
            "truncated": truncated / len(counts),
        },
        "inexact": inexact,
    }


def show_checkpoint(directory: Path, manifest: pb.Checkpoint, console: Console | None = None) -> None:
    """Prints a finished checkpoint and the metrics of its steps, and sample answers when it has some."""
    from tuneserve import inspect
    from tuneserve.checkpoint import rows
    from tuneserve.finetune.export.merging import SAMPLES

    console = console or Console()
    inspect.show_manifest(directory, manifest, console)
    if (directory / SAMPLES).exists():
        for sample in rows.read(directory / SAMPLES):
            console.print(f"? {sample['prompt']}", markup=False)
            console.print(f"  expected: {sample['expected']}", markup=False)
            console.print(f"  answered: {sample['answer']}", markup=False)


def _preferences(split: dataset.Data) -> str:
    """Says what may be learned in place of what was meant: that good answers are the longer ones, for example."""
    both = preferences.sides([*split.train, *split.test])
    good, bad = ([len(quality.expected_answer(row)) for row in side] for side in (both.good, both.bad))
    paired = "rejected" in split.train[0]
    kinds = f"{len(good)} pairs of answers" if paired else f"{len(good)} good answers, {len(bad)} bad ones"
    longer = preferences.share(preferences.Sides(good, bad), paired)
    return f"{kinds}; the better answer is the longer one in {longer:.0%} of pairs"


def _length(tokenizer: Any, row: dict[str, Any], target: Target) -> int:
    if "query" in row:
        [one] = encode(tokenizer, replace(target, max_length=_UNTRUNCATED), [row])
        return lengths([one])[0]
    if "text" in row:
        return len(tokenizer(row["text"], row.get("text_pair"))["input_ids"])
    return max(len(examples.answer(tokenizer, one)[0]) for one in preferences.answers(row))


def _histogram(lengths: NDArray[np.int_], longest: int) -> Table:
    """Rows by length in tokens, doubling from 16."""
    edges = [16 * 2**power for power in range(12)]
    counts = Counter(next((edge for edge in edges if length <= edge), edges[-1]) for length in lengths)
    table = Table("tokens, up to", "rows", "")
    for edge in edges:
        if counts[edge] or edge == longest:
            bar = "█" * round(40 * counts[edge] / len(lengths))
            table.add_row(f"{edge}{'  max_length' if edge == longest else ''}", str(counts[edge]), bar)
    return table
