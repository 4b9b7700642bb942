"""Detects changes of files that the server reloads."""

import os
from pathlib import Path


def stamp(path: Path) -> tuple[int, ...] | None:
    """Returns a value that changes when the file does, or None if there is no file.

    Symbolic links are followed: Kubernetes updates a mounted file by swapping the directory that its link points into.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev
