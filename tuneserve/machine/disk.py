"""Full disks: one clear error in place of each library's own. Files that are written whole or not at all, and locks."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneserve.errors import StepFailed, UserError

_AGAIN = "free some, and run it again"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# An errno in the errors of Rust libraries, and PyTorch's errors for a full disk.
_WORDS = ("(os error 28)", "(os error 122)", "PytorchStreamWriter failed", "unexpected pos")


def check(path: Path, needed: int) -> None:
    """Raises UserError if the disk for `path` has less than `needed` bytes left."""
    free = _free(path)
    if free < needed:
        raise UserError(
            f"{path}: about {_size(needed)} are needed and {_size(free)} are free on that disk",
            "free some, or choose another output",
        )


def write(path: Path, texts: Iterable[str], hint: str = _AGAIN) -> None:
    """Writes a file for good, or leaves what was there. Raises StepFailed if its disk is full."""
    writing = path.with_name(f".{path.name}.tmp")
    with watched(path, hint):
        with writing.open("w", encoding="utf-8") as file:
            file.writelines(texts)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, writing)
        writing.replace(path)
        sync(path.parent)


def sync(folder: Path) -> None:
    """Makes the names in a folder last."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def locked(file: Path, wait: bool = True) -> Iterator[None]:
    """Nobody else has the lock of this file during the block; the system releases that of a process that is killed.

    Raises BlockingIOError if somebody has it, and it is not to wait.
    """
    with file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextmanager
def watched(path: Path, hint: str = _AGAIN) -> Iterator[None]:
    """Raises StepFailed if the disk of `path` fills up before the block has ended."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        raise StepFailed(f"{path}: the disk is full: {_size(_free(path))} left", hint) from None


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(words in str(error) for words in _WORDS)


def _free(path: Path) -> int:
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
