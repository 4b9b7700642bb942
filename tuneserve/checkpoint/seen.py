"""Which rows a checkpoint was trained on, so that it is never measured on them.

A checkpoint keeps a digest of each input of its training and validation rows, those of answers within conversations
included, and the digests of the models that it learned from. A digest has 16 bytes, and a text can't be recovered from
it except by guessing. All code that chooses rows to measure on uses this module.
"""

import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuneserve import checkpoint
from tuneserve.checkpoint.rows import DIGEST, Row, digest, earlier_inputs, input_key
from tuneserve.errors import CheckpointError, UserError
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

FILE = "eval/trained_rows.blake2b"

Digests = NDArray[np.bytes_]  # sorted, without duplicates
NONE: Digests = np.empty(0, f"S{DIGEST}")


def inputs(rows: Iterable[Row]) -> Digests:
    """Returns the digests of the rows' inputs, in the rows' order."""
    return np.frombuffer(b"".join(digest(input_key(row)) for row in rows), NONE.dtype)


def learned(rows: Iterable[Row]) -> Digests:
    """Returns the digests of the rows' inputs, and of the inputs of earlier answers in conversations."""
    found = bytearray()
    for row in rows:
        found += digest(input_key(row))
        for key in earlier_inputs(row):
            found += digest(key)
    return np.unique(np.frombuffer(found, NONE.dtype))


def keep(directory: Path, manifest: pb.Checkpoint, digests: Digests) -> None:
    """Writes digests into a checkpoint's directory, and names the file in its manifest."""
    path = directory / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    # Sorted and without duplicates, so that the file matches its description in the manifest.
    path.write_bytes(np.unique(digests).tobytes())
    manifest.trained_rows.path = FILE
    manifest.trained_rows.sha256 = checkpoint.sha256_file(path)
    manifest.trained_rows.rows = path.stat().st_size // DIGEST


def copy(source: Path, directory: Path, manifest: pb.Checkpoint) -> None:
    """Copies the digests that the manifest of `source` names, if it names any."""
    if path := manifest.trained_rows.path:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, directory / path)


def trained_on(directory: Path) -> Digests | None:
    """Returns the digests that a checkpoint keeps, or None if it keeps none, because it was made elsewhere or by an
    older release.

    Raises CheckpointError if they don't match its manifest.
    """
    if not (directory / checkpoint.MANIFEST).exists():
        return None
    kept = checkpoint.read_manifest(directory).trained_rows
    if not kept.path:
        return None
    path = directory / kept.path
    if not path.is_file() or checkpoint.sha256_file(path) != kept.sha256:
        raise CheckpointError(
            f"{path}: not the digests that {checkpoint.MANIFEST} names", "copy the whole directory again"
        )
    return np.fromfile(path, NONE.dtype)


def unseen(rows: Sequence[Row], checkpoints: Sequence[Path]) -> list[Row]:
    """Returns the rows that none of the checkpoints was trained on, and logs how many rows were left out.

    Raises UserError if none are left.
    """
    found = inputs(rows)
    new = np.ones(len(found), bool)
    by = []
    for directory in dict.fromkeys(checkpoints):
        digests = trained_on(directory)
        if digests is None:
            logger.warning(
                "%s does not say what it was trained on: on rows that it has seen, the measured quality is too high",
                directory,
            )
        elif (its := np.isin(found, digests)).any():
            new &= ~its
            by.append(str(directory))
    if len(found) and not new.any():
        raise UserError(
            f"all {len(found)} rows are among those that {' and '.join(by)} was trained on",
            "give rows that it was not trained on",
        )
    if by:
        logger.warning(
            "%d of %d rows are left out: %s was trained on them", len(new) - new.sum(), len(new), " and ".join(by)
        )
    return [row for row, is_new in zip(rows, new, strict=True) if is_new]
