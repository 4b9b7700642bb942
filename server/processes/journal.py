"""The journal of a server's processes: what administrators have changed, in files that all of them append to and read.

Its order is the same for all, so processes that do what it says have the same models. It lasts as long as the server,
but does not grow with it: a part that got long is closed, and a summary of it and what was before takes its place for
processes that join later. Those that follow read the closed part to its end.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuneserve.machine import disk
from tuneserve.server import concurrency

# Bytes of a part that is closed: about a hundred operations or more.
_LONG = 1 << 18


@dataclass(frozen=True)
class Entry:
    """One line. `following.py` has the kinds."""

    kind: str
    process: int  # whose entry it is, by process id
    operation: str = ""  # which one it belongs to
    body: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """The journal of a folder, and the turn to change what is served."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = folder / "turn"
        self._lock = folder / "lock"
        self._number = -1  # of the part that is read
        self._read = 0  # bytes of it
        with disk.locked(self._lock):
            if self._last() < 0:
                self._begin(0, [])

    def append(self, entry: Entry) -> None:
        """Adds an entry at the end."""
        with disk.locked(self._lock), self._part(self._last()).open("r+b") as file:
            # Over the beginning of a line whose process was killed.
            file.truncate(file.seek(_whole(file.read())))
            file.write(_line(entry))

    def new(self) -> list[Entry]:
        """Returns the entries since the last call; the first time, those that are left of all. Raises FileNotFoundError
        if two parts were closed since: the older one is gone.
        """
        found: list[Entry] = []
        if self._number < 0:
            with disk.locked(self._lock):
                self._number = self._last()
                found = _parsed(self._summary(self._number).read_bytes())
        # Nobody adds to a part once there is a next one.
        while self._part(self._number + 1).exists():
            found += self._rest()
            self._number, self._read = self._number + 1, 0
        return found + self._rest()

    def shorten(self, needed: Callable[[list[Entry]], Iterable[Entry]]) -> None:
        """Closes the last part if it is long. `needed` returns those entries that a process still needs to join."""
        with disk.locked(self._lock):
            last = self._last()
            if self._part(last).stat().st_size < _LONG:
                return
            entries = _parsed(self._summary(last).read_bytes() + self._part(last).read_bytes())
            # On a full disk it stays long.
            with suppress(OSError):
                self._begin(last + 1, needed(entries))
                self._summary(last).unlink()
                self._part(last - 1).unlink(missing_ok=True)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Nobody else has the turn during the block. The system ends that of a process that is killed."""
        return concurrency.locked(self._turn)

    def _rest(self) -> list[Entry]:
        part = self._part(self._number)
        if part.stat().st_size == self._read:
            return []
        with part.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        self._read += _whole(data)
        return _parsed(data)

    def _begin(self, number: int, summary: Iterable[Entry]) -> None:
        self._summary(number).write_bytes(b"".join(map(_line, summary)))
        # A summary counts once its part is there: a process that is killed before has changed nothing.
        self._part(number).touch(0o600)

    def _last(self) -> int:
        return max((int(part.suffix[1:]) for part in self._folder.glob("part.*")), default=-1)

    def _part(self, number: int) -> Path:
        return self._folder / f"part.{number}"

    def _summary(self, number: int) -> Path:
        return self._folder / f"summary.{number}"


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry)).encode() + b"\n"


def _whole(data: bytes) -> int:
    """The bytes of the whole lines."""
    return data.rfind(b"\n") + 1


def _parsed(data: bytes) -> list[Entry]:
    return [Entry(**json.loads(line)) for line in data[: _whole(data)].splitlines()]
