"""Going on from a finished checkpoint with other data, and how much of the old is forgotten by it.

The checkpoint's labels stay, with what the head knows of them; labels of the new data get rows of their own in it.
The checkpoint's held-out rows are never trained on, are answered before and after, and are among the new checkpoint's:
each generation is measured on all that was learned. Old rows mixed with the new ones (replay) are what helps most
against forgetting (Chaudhry et al. 2019); data.py draws them. The rows that a checkpoint keeps are a sample of all that
was learned so far, each with the same chance (a reservoir).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tuneserve import checkpoint, quality
from tuneserve.errors import UserError
from tuneserve.evaluate import held_out_rows, kept_rows
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.spool import Places
from tuneserve.finetune.tokens import Target
from tuneserve.layers import heads
from tuneserve.rows import Row, input_key
from tuneserve.v1 import checkpoint_pb2 as pb

LEARNED = "learned_rows"  # of all generations together
BEFORE, AFTER, DROP = "forgetting/{}_before", "forgetting/{}_after", "forgetting/{}_drop"
NEW = "new/{}"


@dataclass(frozen=True)
class Old:
    """What training goes on from; empty for a base model."""

    labels: tuple[str, ...] = ()  # the position is the class index
    test: Sequence[Row] = ()  # its held-out rows; empty where it keeps none
    train: Sequence[Row] = ()  # training rows that it keeps: a sample of those that it and what came before it learned
    learned: int = 0  # how many these are


def load(config: FinetuneConfig) -> Old:
    """Returns what the checkpoint of `continue_from` knows. Raises UserError when training can't go on from it."""
    if not config.continue_from:
        return Old()
    directory = Path(config.continue_from)
    manifest = checkpoint.load(directory)
    if manifest.quantization:
        raise UserError(
            f"continue_from: {directory} is quantized", "go on from what was quantized, and quantize the result"
        )
    if not any(step.name == "finetune" for step in manifest.lineage):
        raise UserError(f"continue_from: {directory} was not trained here", "give it as base_model")
    task = checkpoint.TASK_NAMES[manifest.task]
    if task != config.task:
        raise UserError(f"continue_from: {directory} is for {task}, task is {config.task}", f"task: {task}")
    if task == "sequence-classification" and manifest.problem_type != checkpoint.PROBLEM_TYPES[config.problem_type]:
        [kind] = [name for name, value in checkpoint.PROBLEM_TYPES.items() if value == manifest.problem_type]
        raise UserError(
            f"continue_from: {directory} is {kind}, problem_type is {config.problem_type}", f"problem_type: {kind}"
        )
    keeps = bool(manifest.calibration_split.path)
    if config.replay_share and not config.replay and not keeps:
        raise UserError(f"replay_share: {directory} keeps no training rows", "give a file of old rows as `replay`")
    train = kept_rows(directory, manifest.calibration_split, "`replay`") if keeps else ()
    test = held_out_rows(directory, manifest) if manifest.test_split.path else ()
    trained = next(step for step in reversed(manifest.lineage) if step.name == "finetune")
    # Older checkpoints kept rows of their last training alone.
    learned = int(trained.metrics[LEARNED] if LEARNED in trained.metrics else trained.metrics["train_rows"])
    return Old(tuple(manifest.labels), test, train, max(learned, len(train)))


def sample(new: Places, old: Places, learned: int, size: int, seed: int) -> Places:
    """Returns `size` of all rows that were learned, or all of them, each with the same chance.

    `new`: this run's, in random order; `old`: such a sample of the `learned` rows before it.
    """
    if not len(old):
        return new[:size]
    chance = np.random.default_rng(seed)
    # How many of a sample of all are old.
    drawn = min(int(chance.hypergeometric(learned, len(new), min(size, learned + len(new)))), len(old))
    found: Places = np.append(chance.choice(old, drawn, replace=False), new[: size - drawn])
    return chance.permutation(found)


def extend_head(model: Any, labels: Sequence[str]) -> list[str]:
    """Gives a model's head one row for each label, those of the labels that it knows copied by their names.

    Returns the name of the module that is new by that, in a list: none when the labels are what they were.
    """
    known = model.config.label2id
    if not labels or [label for label, _ in sorted(known.items(), key=lambda pair: pair[1])] == list(labels):
        return []
    import torch

    # What answers stands behind all other layers that are outside of the blocks.
    name = heads(model)[-1]
    old = model.get_submodule(name)
    new = torch.nn.Linear(old.in_features, len(labels), bias=old.bias is not None).to(old.weight)
    model._init_weights(new)
    with torch.no_grad():
        for index, label in enumerate(labels):
            if label in known:
                for parameter, before in zip(new.parameters(), old.parameters(), strict=True):
                    parameter[index] = before[known[label]]
    model.set_submodule(name, new)
    model.num_labels = len(labels)
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    return [name.partition(".")[0]]


def measure(model: Any, tokenizer: Any, target: Target, old: Old) -> dict[str, float]:
    """Returns the metrics on the old held-out rows, in fp32, if there are any."""
    if not old.test:
        return {}
    import torch

    from tuneserve.finetune import evaluation

    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return evaluation.evaluate(model, tokenizer, target, old.test, bf16=False).metrics


def forgetting(task: pb.Task, before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Returns the headline metric before and after, and how much worse it got (see quality.drop), by metric name."""
    if not before:
        return {}
    name = quality.headline(task, before).name
    return {
        BEFORE.format(name): before[name],
        AFTER.format(name): after[name],
        DROP.format(name): quality.drop(task, before, after),
    }


def of_new(model: Any, tokenizer: Any, target: Target, old: Old, test: Sequence[Row]) -> dict[str, float]:
    """Returns the headline metric on the held-out rows that are not old ones, as `new/NAME`."""
    known = {input_key(row) for row in old.test}
    new = [row for row in test if input_key(row) not in known]
    metrics = measure(model, tokenizer, target, replace(old, test=new))
    if not metrics:
        return {}
    name = quality.headline(checkpoint.TASKS[target.task], metrics).name
    return {NEW.format(name): metrics[name]}


def show(task: pb.Task, metrics: Mapping[str, float]) -> None:
    """Prints what `forgetting` found."""
    from rich.console import Console
    from rich.table import Table

    name = quality.headline(task, metrics).name
    if BEFORE.format(name) in metrics:
        table = Table("", f"{name} before", "after", "drop")
        table.add_row("old held-out rows", *(f"{metrics[key.format(name)]:.4f}" for key in (BEFORE, AFTER, DROP)))
        if NEW.format(name) in metrics:
            table.add_row("new held-out rows", "", f"{metrics[NEW.format(name)]:.4f}", "")
        Console().print(table)
