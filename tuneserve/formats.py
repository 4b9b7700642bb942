"""Reads files and hub data sets into raw rows, each with its place for messages. Does not check the content."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from tuneserve.errors import UserError

Format = Literal["conll", "csv", "jsonl", "parquet"]
# The format of a file, by its suffix.
FORMATS: Mapping[str, Format] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".txt": "conll",
}
# (where it is, the row or the reason why it can't be parsed)
Raw = tuple[str, dict[str, Any] | str]

_EXAMPLE = re.compile(r'\[\s*"')  # the beginning of an example of spaCy: [text, {"entities": ...}]
_BETWEEN = re.compile(r"[\s,]*")  # between two values of a JSON array
_BATCH = 1024  # rows of Parquet that are read into memory at once


def read(source: str, format: str | None = None) -> Iterator[Raw]:
    """Yields (where, row) for every row of a file or hub data set.

    A row that could not be parsed comes as (where, reason). Raises UserError when the whole source can't be read.
    """
    path = Path(source)
    if not path.is_absolute():
        yield from _hub(source)
        return
    if not path.is_file():
        raise UserError(f"{path}: no such file", "train and test are files, or data set ids on the hub")
    format = format or FORMATS.get(path.suffix.lower())
    if path.suffix.lower() == ".spacy":
        raise UserError(
            f"{path}: only spaCy reads a DocBin",
            "write each doc of DocBin().from_disk(path).get_docs(nlp.vocab) as a line of JSON:"
            ' [doc.text, {"entities": [[e.start_char, e.end_char, e.label_] for e in doc.ents]}]',
        )
    if format is None:
        raise UserError(f"{path}: no known suffix", "set format to jsonl, csv, parquet or conll, or rename the file")
    readers = {"jsonl": _json, "csv": _csv, "parquet": _parquet, "conll": _conll}
    try:
        yield from readers[format](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}", "save the file as UTF-8") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    # Not splitlines: U+2028 and the like belong to the text. utf-8-sig drops a byte order mark.
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            yield f"{path.name}:{number}", line.rstrip("\r\n")


def _json(path: Path) -> Iterator[Raw]:
    """One object or spaCy example a line, or an array of them, which is read into memory whole."""
    with path.open(encoding="utf-8-sig") as file:
        first = next((line.lstrip() for line in file if line.strip()), "")
    yield from _array(path) if first.startswith("[") and not _EXAMPLE.match(first) else json_lines(_lines(path))


def _row(value: Any) -> dict[str, Any] | str:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict):
        return {"text": value[0], **value[1]}
    return value if isinstance(value, dict) else "not a JSON object"


def _array(path: Path) -> Iterator[Raw]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        yield f"{path.name}:{error.lineno}", f"not JSON: {error.msg} at column {error.colno}"
        return
    place, decoder = text.index("[") + 1, json.JSONDecoder()
    line = 1 + text.count("\n", 0, place)
    for value in values:
        # Decoded value by value once more, to find the line in which each begins.
        start = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        line += text.count("\n", place, start)
        _, place = decoder.raw_decode(text, start)
        yield f"{path.name}:{line}", _row(value)
        line += text.count("\n", start, place)


def json_lines(lines: Iterable[tuple[str, str]]) -> Iterator[Raw]:
    """Yields (where, row) for every line of JSON Lines, given with its place."""
    for where, line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            yield where, f"not JSON: {error.msg} at column {error.colno}"
            continue
        yield where, _row(value)


def _csv(path: Path) -> Iterator[Raw]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # No limit on a field's length: texts may be long.
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        start = 1
        try:
            for cells in reader:
                where, start = f"{path.name}:{start}", reader.line_num + 1
                if header is None:
                    header = cells
                elif len(cells) == len(header):
                    yield where, dict(zip(header, cells, strict=True))
                elif cells:
                    yield where, f"{len(cells)} columns, the header has {len(header)}"
        except csv.Error as error:
            # Rows after a broken quote can't be told apart any more.
            yield f"{path.name}:{start}", f"not CSV: {error}"


def _parquet(path: Path) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}:{number}", row
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not Parquet: {error}") from None


def _conll(path: Path) -> Iterator[Raw]:
    """Sentences, one token a line: the first column is the token, the last its tag; a blank line between."""
    tokens: list[str] = []
    tags: list[str] = []
    problem = ""
    start = ""

    def sentence() -> Iterator[Raw]:
        if problem or tokens:
            yield start, problem or {"tokens": list(tokens), "tags": list(tags)}

    for where, line in _lines(path):
        # In a line with tabs, only these separate columns: a token may contain other white space.
        cells = line.split("\t") if "\t" in line else line.split()
        if not any(cell.strip() for cell in cells) or cells[0] == "-DOCSTART-":
            yield from sentence()
            tokens, tags, problem, start = [], [], "", ""
        elif len(cells) < 2:
            start, problem = where, f"no tag after {cells[0]!r}"
        else:
            start = start or where
            tokens.append(cells[0].strip())
            tags.append(cells[-1].strip())
    yield from sentence()


def _hub(source: str) -> Iterator[Raw]:
    """Rows of `owner/name[/config][:split]`; the split is train unless told. Class numbers become their names."""
    import datasets

    name, _, split = source.partition(":")
    parts = name.split("/")
    config = parts.pop() if len(parts) == 3 else None
    datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset("/".join(parts), config, split=split or "train")
    except Exception as error:
        # The library raises another exception type for each way in which the hub can fail.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"data set {source} could not be loaded: {reason}",
            "a local file needs an existing path; a hub id is owner/name[/config][:split]",
        ) from None
    names = {key: names for key, feature in data.features.items() if (names := _class_names(feature))}
    for number, row in enumerate(data, start=1):
        for key, classes in names.items():
            row[key] = _named(row[key], classes)
        yield f"{source}:{number}", row


def _class_names(feature: Any) -> list[str]:
    inner = getattr(feature, "feature", feature)
    return list(getattr(inner, "names", None) or [])


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    # On the hub, -1 means "no label"; it stays a number and is reported as a bad row.
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value
