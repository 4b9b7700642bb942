"""Reads files without blocking, even if the path is a pipe or a device."""

import errno
import os
import stat
from pathlib import Path


def read(path: Path, most: int) -> bytes:
    """Returns the content of a file. Raises OSError, also if it has more than `most` bytes or is not a regular file:
    opening a pipe waits for a writer, and reading a device may never end.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than the {most} bytes that are allowed")
    return content
