"""The journal of a server's processes: what administrators have changed, in a file that all of them append to and read.

Its order is the same for all, so processes that do what it says have the same models. It lasts as long as the server.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuneserve.server import concurrency


@dataclass(frozen=True)
class Entry:
    """One line. `administration.py` has the kinds."""

    kind: str
    process: int  # whose entry it is, by process id
    operation: str = ""  # which one it belongs to
    body: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """The journal of a folder, and the turn to change what is served."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "journal"
        self._turn = folder / "turn"
        self._read = 0
        self._file.touch(0o600)

    def append(self, entry: Entry) -> None:
        """Adds an entry at the end."""
        with self._file.open("ab", buffering=0) as file:
            # One write: the system keeps those of several processes apart.
            file.write(json.dumps(asdict(entry)).encode() + b"\n")

    def new(self) -> list[Entry]:
        """Returns the entries since the last call."""
        if self._file.stat().st_size == self._read:
            return []
        with self._file.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [Entry(**json.loads(line)) for line in whole.splitlines()]

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Nobody else has the turn during the block. The system ends that of a process that is killed."""
        return concurrency.locked(self._turn)
