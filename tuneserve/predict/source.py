"""The rows to answer: of files, folders of them, or standard input, in windows."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tuneserve import formats
from tuneserve.errors import UserError
from tuneserve.formats import FORMATS, Raw

# Rows that are read, sorted by length, answered and written together.
WINDOW = 1024
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Shard:
    """Every `of`-th row, from row `index` on."""

    index: int = 0
    of: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


@dataclass(frozen=True)
class Source:
    """Where the rows are."""

    files: Sequence[Path]  # empty: standard input, JSON Lines
    shard: Shard = Shard()

    @classmethod
    def at(cls, path: Path, shard: Shard) -> "Source":
        """Returns the rows of a file, of all files of a folder that have a known suffix, or of standard input (`-`).

        Raises UserError.
        """
        if str(path) == "-":
            return cls((), shard)
        if not path.is_dir():
            if not path.is_file():
                hint = "give a file, a folder of files, or - for standard input"
                raise UserError(f"{path}: no such file or folder", hint)
            return cls((path.resolve(),), shard)
        files = sorted(one.resolve() for one in path.iterdir() if one.is_file() and one.suffix.lower() in FORMATS)
        if not files:
            raise UserError(f"{path}: has no files of rows", f"known suffixes: {', '.join(sorted(FORMATS))}")
        return cls(files, shard)

    def windows(self) -> Iterator[list[Raw]]:
        """Yields this shard's rows. Raises UserError if a file can't be read."""
        rows = islice(self._rows(), self.shard.index, None, self.shard.of)
        while window := list(islice(rows, WINDOW)):
            yield window

    def count(self) -> int | None:
        """Returns about how many rows this shard has; None if that is not known before they are read."""
        return None if not self.files else sum(map(_count, self.files)) // self.shard.of

    def state(self) -> list[list[str | int]]:
        """Returns what tells whether files have changed."""
        stats = [(path, path.stat()) for path in self.files]
        return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]

    def _rows(self) -> Iterator[Raw]:
        if not self.files:
            lines = enumerate(sys.stdin, start=1)
            yield from formats.json_lines((f"-:{number}", line.rstrip("\r\n")) for number, line in lines)
        for path in self.files:
            yield from formats.read(str(path))


def _count(path: Path) -> int:
    if FORMATS.get(path.suffix.lower()) == "parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(path).num_rows)
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK), b""))
