"""Whether a file that the server reads again has changed."""

import os
from pathlib import Path


def stamp(path: Path) -> tuple[int, ...] | None:
    """Returns what changes when the file does, or None where there is none.

    Links are followed: Kubernetes leaves a mounted file's name alone and swaps the directory that it points into.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev
