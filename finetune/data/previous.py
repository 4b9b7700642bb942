"""The checkpoint that training continues from (`continue_from`): its labels, and the rows that it keeps.

Its held-out rows are never trained on. The training rows that a checkpoint keeps are a uniform sample of all rows
trained on so far (reservoir sampling).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuneserve import checkpoint
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.errors import UserError
from tuneserve.evaluation.evaluate import held_out_rows, kept_rows
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.data.disk_rows import Places

LEARNED = "learned_rows"  # number of rows trained on, in all generations together


@dataclass(frozen=True)
class Old:
    """What is read from the checkpoint that training continues from; empty for a base model."""

    labels: tuple[str, ...] = ()  # the position is the class index
    test: Sequence[Row] = ()  # its held-out rows; empty if it keeps none
    train: Sequence[Row] = ()  # the training rows that it keeps: a sample of all generations' rows
    learned: int = 0  # number of rows that it and its ancestors were trained on


def load(config: FinetuneConfig) -> Old:
    """Reads the checkpoint of `continue_from`. Raises UserError if training can't continue from it."""
    if not config.continue_from:
        return Old()
    directory = Path(config.continue_from)
    manifest = checkpoint.load(directory)
    if manifest.quantization:
        raise UserError(
            f"continue_from: {directory} is quantized",
            "continue from the checkpoint that was quantized, and quantize the result",
        )
    if not any(step.name == "finetune" for step in manifest.lineage):
        raise UserError(f"continue_from: {directory} was not trained here", "give it as base_model")
    task = TASK_NAMES[manifest.task]
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
    if "task" in trained.config and trained.config["task"] == "preference":
        raise UserError(f"continue_from: {directory} was trained on preferences", "give it as base_model")
    # Older checkpoints kept rows of their last training only.
    learned = int(trained.metrics[LEARNED] if LEARNED in trained.metrics else trained.metrics["train_rows"])
    return Old(tuple(manifest.labels), test, train, max(learned, len(train)))


def sample(new: Places, old: Places, learned: int, size: int, seed: int) -> Places:
    """Returns a uniform sample of `size` of all rows trained on, or all of them if there are fewer.

    `new`: rows of this run, in random order; `old`: such a sample of the `learned` rows of earlier runs.
    """
    if not len(old):
        return new[:size]
    chance = np.random.default_rng(seed)
    # How many rows of such a sample are old ones.
    drawn = min(int(chance.hypergeometric(learned, len(new), min(size, learned + len(new)))), len(old))
    found: Places = np.append(chance.choice(old, drawn, replace=False), new[: size - drawn])
    return chance.permutation(found)
