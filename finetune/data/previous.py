"""The checkpoint that training goes on from (`continue_from`): its labels, and the rows that it keeps.

Its held-out rows are never trained on. The training rows that a checkpoint keeps are a sample of all that was learned
so far, each with the same chance (a reservoir).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuneserve import checkpoint
from tuneserve.errors import UserError
from tuneserve.evaluation.evaluate import held_out_rows, kept_rows
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.data.spool import Places
from tuneserve.rows import Row

LEARNED = "learned_rows"  # of all generations together


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
