"""The rows that FeedbackService kept."""

import glob
import json
from collections.abc import Iterable
from pathlib import Path

from tuneserve.checkpoint.rows import Row, dumps
from tuneserve.errors import UserError

_ID = "request_id"


def read(pattern: Path) -> list[Row]:
    """Returns the rows of all files, each once, without their request ids: of one request, the last.

    Raises UserError naming the file and line. A line that is just being written is left out.
    """
    found: dict[str, Row] = {}
    for path in sorted(map(Path, glob.glob(str(pattern)))):
        last: dict[str, Row] = {}
        data = path.read_bytes()
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: not a JSON object", "correct or remove the line")
            # Of different tenants, the same id is not the same request.
            last[str(row.pop(_ID, f" {number}"))] = row
        found.update((dumps(row), row) for row in last.values())
    return list(found.values())


def without(rows: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """Returns the rows that are not among `others`."""
    known = set(map(dumps, others))
    return [row for row in rows if dumps(row) not in known]
