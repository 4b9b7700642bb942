"""The rows that a run's parents have seen: the base model (or the checkpoint to continue from) and the teacher.

Rows that a parent was trained on are never held out, and rows that a parent held out stay held out: so each model is
measured on rows that it was not trained on, and all on the same rows.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tuneserve import checkpoint
from tuneserve.checkpoint import seen
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.seen import NONE, Digests
from tuneserve.evaluation.evaluate import held_out_rows
from tuneserve.finetune.config import FinetuneConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parents:
    """Digests of the parents' inputs; empty for models that tuneserve did not train."""

    trained: Digests = field(default_factory=NONE.copy)
    held_out: Digests = field(default_factory=NONE.copy)

    def unseen(self, rows: Iterable[Row]) -> list[Row]:
        """Returns the rows that no parent was trained on."""
        known = set(self.trained.tolist())
        return [row for row in rows if seen.inputs([row])[0] not in known]


def load(config: FinetuneConfig) -> Parents:
    """Reads the digests from the parents' checkpoints. Raises UserError if the rows there don't match the manifest."""
    trained, held_out = [NONE], [NONE]
    for source in filter(None, (config.base_model, config.teacher)):
        directory = Path(source)
        # Nothing is known of the rows of other models, so there is no warning either.
        if not (directory / checkpoint.MANIFEST).exists():
            continue
        manifest = checkpoint.read_manifest(directory)
        if manifest.test_split.path:
            held_out.append(seen.inputs(held_out_rows(directory, manifest)))
        digests = seen.trained_on(directory)
        if digests is None:
            logger.warning(
                "%s does not say what it was trained on: rows that are held out now may be among those", directory
            )
        else:
            trained.append(digests)
    return Parents(np.unique(np.concatenate(trained)), np.unique(np.concatenate(held_out)))
