"""Accounts that several processes of one machine share: some numbers for each name, in a file that all have in memory.

They are read and written under a lock on the file, which takes some microseconds. The system releases the lock of a
process that is killed.
"""

import fcntl
import mmap
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tuneserve.errors import UserError

_NUMBERS = 4  # of an account, each of 64 bits
# The file is sparse: accounts that nobody uses take no space.
_MOST = 1 << 16
_BYTES = 8 * _NUMBERS * _MOST


class Ledger:
    """The accounts of a folder. They begin with zeros, and stay while the folder does."""

    def __init__(self, folder: Path) -> None:
        self._names = folder / "names"
        self._file = os.open(folder / "accounts", os.O_RDWR | os.O_CREAT, 0o600)  # as long as the process lives
        os.truncate(self._file, _BYTES)
        self._numbers = memoryview(mmap.mmap(self._file, _BYTES)).cast("q")
        # The lock on the file is the whole process's.
        self._of_thread = threading.Lock()

    def accounts(self, names: Iterable[str]) -> Mapping[str, "Account"]:
        """Returns the accounts of these names. Raises UserError if there were too many names."""
        with self.locked():
            known = self._names.read_text(encoding="utf-8").splitlines() if self._names.exists() else []
            places = {name: place for place, name in enumerate(dict.fromkeys([*known, *names]))}
            if len(places) > _MOST:
                raise UserError(f"{len(places)} tenants since the start; allowed: {_MOST}", "restart the server")
            with self._names.open("a", encoding="utf-8") as file:
                file.writelines(f"{name}\n" for name in list(places)[len(known) :])
        return {name: Account(self, self._numbers[_NUMBERS * places[name] :][:_NUMBERS]) for name in names}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other process, and no other thread, reads or writes an account during the block."""
        with self._of_thread:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)


@dataclass(frozen=True)
class Account:
    """The numbers of one name. Use them while the ledger is locked."""

    ledger: Ledger
    numbers: memoryview
