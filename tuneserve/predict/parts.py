"""Keeps answered windows in OUTPUT.parts until all of them are there, and makes them the output: whole, or not at all.

A part is written at once, so after a kill the parts that are there are good, and a run that resumes skips them.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneserve.checkpoint.rows import Row
from tuneserve.errors import UserError
from tuneserve.machine import disk

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
_STATE = "state.json"
_FULL = "free some, and run it again with --resume"
_HINT = "resume it with --resume, or start again with --overwrite"


class Parts:
    """The answered windows of one output."""

    def __init__(
        self, output: Path, about: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False
    ) -> None:
        """Opens the parts of an interrupted run, or begins a new one.

        `about` is what answers depend on. Raises UserError if the output exists, if there are parts and neither
        `resume` nor `overwrite` says what to do, or if the run to resume was about something else.
        """
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        if output.suffix.lower() not in SUFFIXES:
            raise UserError(f"{output}: unknown suffix", f"allowed: {', '.join(SUFFIXES)}, or - for standard output")
        if output.exists() and not overwrite:
            raise UserError(f"{output}: already exists", "choose another output, or replace it with --overwrite")
        if overwrite:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._about = json.dumps(about)
        if (self.folder / _STATE).exists():
            self._continue(resume)

    @property
    def done(self) -> set[int]:
        """The windows that are there, by number."""
        return {int(path.stem) for path in self.folder.glob("*.jsonl")}

    def write(self, number: int, rows: Iterable[Row]) -> None:
        """Writes the answered rows of a window."""
        if not (self.folder / _STATE).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            disk.write(self.folder / _STATE, [self._about], _FULL)
        disk.write(self.folder / f"{number:08}.jsonl", (dumps(row) + "\n" for row in rows), _FULL)

    def finish(self) -> None:
        """Writes the output, in the order of the rows, and removes the parts."""
        writing = self.output.with_name(f".{self.output.name}.tmp")
        with disk.watched(self.output, _FULL):
            _WRITERS[self.output.suffix.lower()](writing, sorted(self.folder.glob("*.jsonl")))
            os.replace(writing, self.output)
        shutil.rmtree(self.folder)

    def _continue(self, resume: bool) -> None:
        if not resume:
            raise UserError(f"{self.folder}: from an interrupted run, which has {len(self.done)} parts", _HINT)
        before = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
        now = json.loads(self._about)
        if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
            raise UserError(
                f"{self.folder}: from a run with another {' and another '.join(changed)}",
                "run with what it was started with, or start again with --overwrite",
            )


def dumps(value: Any) -> str:
    """Returns a value as JSON. What JSON has no form for, such as a date in Parquet, becomes a text, and NaN becomes
    null.
    """
    return json.dumps(value if _is_json(value) else _as_json(value), ensure_ascii=False)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    return value if _is_json(value) else None if isinstance(value, float) else str(value)


def _rows(part: Path) -> Iterator[Row]:
    with part.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _as_lines(output: Path, parts: Sequence[Path]) -> None:
    with output.open("wb") as file:
        for part in parts:
            with part.open("rb") as one:
                shutil.copyfileobj(one, file)


def _as_csv(output: Path, parts: Sequence[Path], delimiter: str = ",") -> None:
    columns = dict.fromkeys(key for part in parts for row in _rows(part) for key in row)
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), delimiter=delimiter, restval="")
        writer.writeheader()
        for part in parts:
            for row in _rows(part):
                writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value: Any) -> Any:
    return dumps(value) if isinstance(value, dict | list) else value


def _as_tsv(output: Path, parts: Sequence[Path]) -> None:
    _as_csv(output, parts, "\t")


def _as_parquet(output: Path, parts: Sequence[Path]) -> None:
    import pyarrow
    import pyarrow.parquet

    # Twice through the parts: a column may be empty in the first ones, or of another type in the last ones.
    types: dict[str, pyarrow.DataType] = {}
    for part in parts:
        for name, values in _columns(list(_rows(part))).items():
            types[name] = _common(types.get(name, pyarrow.null()), values)
    with pyarrow.parquet.ParquetWriter(output, pyarrow.schema(types.items())) as writer:
        for part in parts:
            rows = list(_rows(part))
            columns = ([_as_type(row.get(name), type_) for row in rows] for name, type_ in types.items())
            arrays = [pyarrow.array(column, type_) for column, type_ in zip(columns, types.values(), strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, list(types)))


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}


def _common(known: Any, values: Sequence[Any]) -> Any:
    """Returns the Arrow type of a column, whose type was `known` so far; text if its values have no common type."""
    import pyarrow

    try:
        schemas = [pyarrow.schema([("", type_)]) for type_ in (known, pyarrow.array(values).type)]
        return pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.string()


def _as_type(value: Any, type_: Any) -> Any:
    is_text = str(type_) == "string"
    return dumps(value) if is_text and value is not None and not isinstance(value, str) else value


_WRITERS = {".jsonl": _as_lines, ".csv": _as_csv, ".tsv": _as_tsv, ".parquet": _as_parquet}
