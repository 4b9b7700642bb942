"""Training rows that are kept in the checkpoint: quantize calibrates with them, never with held-out rows, and a run
that continues from the checkpoint may replay them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.checkpoint.rows import Row
from tuneserve.v1 import checkpoint_pb2 as pb

ROWS = 512


def keep(directory: Path, manifest: pb.Checkpoint, sample: Sequence[Row]) -> None:
    """Writes the first rows of a sample, and names them in the manifest."""
    chosen = sample[:ROWS]
    rows.write(directory / checkpoint.CALIBRATION_SPLIT, chosen)
    manifest.calibration_split.path = checkpoint.CALIBRATION_SPLIT
    manifest.calibration_split.sha256 = rows.sha256(chosen)
    manifest.calibration_split.rows = len(chosen)


def copy(source: Path, directory: Path, manifest: pb.Checkpoint) -> None:
    """Copies the rows that the manifest of `source` names, if it names any."""
    if path := manifest.calibration_split.path:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, directory / path)
