"""Files that a running program reads: none of them may hold it up, whatever stands in its place."""

import errno
import os
import stat
from pathlib import Path


def read(path: Path, most: int) -> bytes:
    """Returns what a file holds. Raises OSError, also where it holds more bytes, or is no regular file: who opens a
    pipe waits for whoever writes to it, and a device may never end.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than the {most} bytes that are allowed")
    return content
