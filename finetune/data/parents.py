"""What the models that a run learns from have seen: what it goes on from, and its teacher.

Rows that one of them was trained on are never held out, and rows that one of them held out stay so: then each is
measured on rows that it did not learn, and all on the same ones.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tuneserve import checkpoint, seen
from tuneserve.evaluation.evaluate import held_out_rows
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.rows import Row
from tuneserve.seen import NONE, Digests

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parents:
    """Digests of inputs; none for models that were not made here."""

    trained: Digests = field(default_factory=NONE.copy)
    held_out: Digests = field(default_factory=NONE.copy)

    def unseen(self, rows: Iterable[Row]) -> list[Row]:
        """Returns the rows that none of them was trained on."""
        known = set(self.trained.tolist())
        return [row for row in rows if seen.inputs([row])[0] not in known]


def load(config: FinetuneConfig) -> Parents:
    """Reads what the checkpoints keep. Raises UserError for rows that are not those of a manifest."""
    trained, held_out = [NONE], [NONE]
    for source in filter(None, (config.base_model, config.teacher)):
        directory = Path(source)
        # Of others nobody knows what they have seen, and so nobody is told.
        if not (directory / checkpoint.MANIFEST).exists():
            continue
        manifest = checkpoint.read_manifest(directory)
        if manifest.test_split.path:
            held_out.append(seen.inputs(held_out_rows(directory, manifest)))
        digests = seen.trained_on(directory)
        if digests is None:
            logger.warning(
                "%s does not tell what it was trained on: rows that are held out now may be among that", directory
            )
        else:
            trained.append(digests)
    return Parents(np.unique(np.concatenate(trained)), np.unique(np.concatenate(held_out)))
