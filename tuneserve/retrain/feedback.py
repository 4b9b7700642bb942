"""The rows that FeedbackService kept."""

import glob
import json
import os
from collections.abc import Iterable
from pathlib import Path

from tuneserve.checkpoint.rows import Row, dumps
from tuneserve.errors import UserError
from tuneserve.machine import disk

_ID = "request_id"


def files(pattern: Path) -> list[Path]:
    """Returns the files that a policy's `feedback` names."""
    return sorted(map(Path, glob.glob(str(pattern))))


def read(pattern: Path) -> list[Row]:
    """Returns the rows of all files, each once, without their request ids: of one request, the last.

    Raises UserError naming the file and line. A line that is just being written is left out.
    """
    # Of different tenants, the same id is not the same request.
    found = [_content(row) for path in files(pattern) for row in _last(path)]
    return list({dumps(row): row for row in found}.values())


def remove(pattern: Path, learned: Iterable[Row]) -> int:
    """Removes these rows from all files, and returns how many they were; in the same files also those that a later row
    of their request has replaced, which would count again.

    Servers may write meanwhile: they hold the same lock. Raises UserError for a file that can't be written.
    """
    known, removed = set(map(dumps, learned)), 0
    for path in files(pattern):
        try:
            with disk.locked(path.parent.parent / ".lock"):
                rows = _last(path)
                left = [row for row in rows if dumps(_content(row)) not in known]
                if len(left) < len(rows):
                    owner = path.stat()
                    disk.write(path, (f"{dumps(row)}\n" for row in left))
                    if os.geteuid() == 0:
                        # The server may be another user.
                        os.chown(path, owner.st_uid, owner.st_gid)
                    removed += len(rows) - len(left)
        except OSError as error:
            told = f"{path}: {error.strerror}; remove_learned is true, and takes rows out of it"
            raise UserError(told, "run this as the server's user, or set remove_learned: false") from None
    return removed


def without(rows: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """Returns the rows that are not among `others`."""
    known = set(map(dumps, others))
    return [row for row in rows if dumps(row) not in known]


def _last(path: Path) -> list[Row]:
    """Returns the rows of a file: of one request, the last."""
    found: dict[str, Row] = {}
    data = path.read_bytes()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: not a JSON object", "correct or remove the line")
        found[str(row.get(_ID, f" {number}"))] = row
    return list(found.values())


def _content(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != _ID}
