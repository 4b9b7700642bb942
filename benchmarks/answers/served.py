"""What the programs here have in common: models trained as a user does it, a server with indexes, documents in them,
and a report.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table

from tuneserve.benchmarks.machine import machine
from tuneserve.checkpoint import rows
from tuneserve.client import Client, Document
from tuneserve.serving import launched

_AT_ONCE = 64


def trained(output: Path, train: Iterable[rows.Row], test: Iterable[rows.Row], **settings: Any) -> None:
    """Writes a checkpoint that `tuneserve finetune` trains; its rows and its settings are written beside it."""
    for part, some in (("train", train), ("test", test)):
        rows.write(output.with_name(f"{part}.jsonl"), some)
    given = {"train": "train.jsonl", "test": "test.jsonl", "output": str(output.resolve()), **settings}
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(given), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "tuneserve.cli", "finetune", file], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def answering(models: Mapping[str, Path], indexes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Path]]:
    """Serves models, and indexes with these settings; yields the address, and the directory that has all indexes."""
    with tempfile.TemporaryDirectory(prefix="tuneserve-bench-") as folder:
        settings = {
            "models": {name: {"path": str(path.resolve())} for name, path in models.items()},
            "indexes": {name: {"path": name, **given} for name, given in indexes.items()},
        }
        file = Path(folder, "server.yaml")
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        with launched("--config", str(file)) as server:
            yield server.addresses.grpc, Path(folder)


def write(client: Client, index: str, documents: Sequence[Document]) -> None:
    """Writes documents, some at a time."""
    for start in range(0, len(documents), _AT_ONCE):
        client.upsert_documents(index, documents[start : start + _AT_ONCE])


def conclude(table: Table, result: Mapping[str, Any], report: Path | None) -> None:
    """Prints a table, and the result as one line of JSON; both are also written to `report`."""
    console = Console(record=True, width=118)
    console.print(table)
    said = json.dumps({"machine": machine(), **result})
    if report:
        drawn = console.export_text()
        report.write_text(f"# {table.title}\n\n```\n{drawn}```\n\n```json\n{said}\n```\n", encoding="utf-8")
    click.echo(said)
