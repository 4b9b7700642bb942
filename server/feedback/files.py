"""The rows of each tenant on disk: PATH/TENANT/MODEL/KIND.jsonl, whole lines, appended by any number of processes.

A tenant's files are locked while they are written, so that its bounds hold for all processes together, also for those
of other machines if the volume knows file locks. What a process that was killed wrote of a line is removed by the
next one. `tuneserve retrain` may replace files by shorter ones, under the same lock.
"""

import asyncio
import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneserve.checkpoint.rows import Row, dumps
from tuneserve.errors import StepFailed, UserError
from tuneserve.machine import disk
from tuneserve.server import concurrency
from tuneserve.server.call.errors import Full
from tuneserve.server.config import FeedbackConfig

_BLOCK = 1 << 20


@dataclass
class _File:
    """How much of a file was read, up to the end of its last whole line."""

    size: int = 0
    rows: int = 0
    inode: int = 0

    def read(self, path: Path) -> None:
        """Counts the lines that are new. A file that was replaced, or has become shorter, is another one."""
        found = path.stat()
        length = found.st_size
        if length < self.size or found.st_ino != self.inode:
            self.size, self.rows, self.inode = 0, 0, found.st_ino
        if length == self.size:
            return
        with path.open("rb") as file:
            place = file.seek(self.size)
            while block := file.read(_BLOCK):
                self.rows += block.count(b"\n")
                if (end := block.rfind(b"\n")) >= 0:
                    self.size = place + end + 1
                place += len(block)


class Files:
    """The rows of all tenants below one directory."""

    def __init__(self, config: FeedbackConfig) -> None:
        """Makes the directory. Raises UserError if it can't be written."""
        self._config = config
        self._known: dict[Path, _File] = {}
        # One thread at a time waits for the disk.
        self._turn = asyncio.Lock()
        try:
            config.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"feedback.path: {config.path}: {error.strerror}") from None
        if not os.access(config.path, os.W_OK | os.X_OK):
            raise UserError(f"feedback.path: {config.path} can't be written")

    async def append(self, tenant: str, model: str, rows: Mapping[str, Row]) -> None:
        """Adds a row to each of these kinds' files, for good. Raises Full, and then adds none."""
        async with self._turn:
            await concurrency.apart(self._append, tenant, model, rows)

    def _append(self, tenant: str, model: str, rows: Mapping[str, Row]) -> None:
        home = self._config.path / tenant
        lines = {home / model / f"{kind}.jsonl": dumps(row).encode() + b"\n" for kind, row in rows.items()}
        try:
            with disk.watched(home):
                (home / model).mkdir(parents=True, exist_ok=True)
                with disk.locked(home / ".lock"):
                    self._check(home, list(lines.values()))
                    for path, line in lines.items():
                        self._write(path, line)
        except StepFailed:
            raise Full("the disk for feedback is full") from None

    def _check(self, home: Path, lines: Sequence[bytes]) -> None:
        """Raises Full if a tenant's files would exceed its bounds with these lines."""
        for path in (found := list(home.glob("*/*.jsonl"))):
            self._known.setdefault(path, _File()).read(path)
        rows = sum(self._known[path].rows for path in found) + len(lines)
        size = sum(self._known[path].size for path in found) + sum(map(len, lines))
        for count, most, unit in ((rows, self._config.max_rows, "rows"), (size, self._config.max_bytes, "bytes")):
            if count > most:
                raise Full(f"the tenant's feedback is full: allowed are {most} {unit}")

    def _write(self, path: Path, line: bytes) -> None:
        if is_new := not path.exists():
            self._known[path] = _File()
        whole = self._known[path].size
        with path.open("ab", buffering=0) as file:
            file.truncate(whole)
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise
        if is_new:
            for folder in (path.parent, path.parent.parent, self._config.path):
                disk.sync(folder)
