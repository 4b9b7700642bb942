"""Detects changes of files that the server reads again."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

Stamp: TypeAlias = tuple[int, ...] | None


def stamp(path: Path) -> Stamp:
    """Returns a value that changes when the file does, or None if there is no file.

    Symbolic links are followed: Kubernetes updates a mounted file by swapping the directory that its link points into.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    # Programs set the modification time as they like; the change time is the system's.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev


def stamps(directory: Path) -> Mapping[Path, Stamp]:
    """Returns the stamps of everything below a directory: much cheaper than reading it."""
    return {path: stamp(path) for path in directory.rglob("*")}
