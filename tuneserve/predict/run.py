"""Answers files of rows with a checkpoint, through a server of its own."""

import asyncio
import itertools
import logging
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from tuneserve import __version__, checkpoint
from tuneserve.checkpoint.rows import Row
from tuneserve.client import AsyncClient
from tuneserve.errors import UserError
from tuneserve.formats import Raw
from tuneserve.predict.asking import Asking
from tuneserve.predict.parts import Parts, dumps
from tuneserve.predict.source import WINDOW, Source
from tuneserve.predict.tasks import ERROR, Options, Task, renamed, task_of
from tuneserve.serving import launched
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

# The name that the model is served under.
_MODEL = "m"


@dataclass(frozen=True)
class Job:
    """What is asked of which checkpoint."""

    checkpoint: Path
    source: Source
    columns: Mapping[str, str] = field(default_factory=dict)  # names of columns in the rows, by the task's names
    options: Options = field(default_factory=Options)


@dataclass
class Counts:
    """The rows that were answered, and those of them with an error."""

    rows: int = 0
    errors: int = 0


def predict(job: Job, output: Path, *, resume: bool = False, overwrite: bool = False) -> Counts:
    """Writes the job's rows with their answers to `output`; `-` is standard output. Returns what this run answered.

    Raises UserError for bad input, and StepFailed if the server does not start or can't answer.
    """
    counts = Counts()
    if str(output) == "-":
        if resume:
            raise UserError("--resume: standard output can't be resumed", "write to a file")
        _answer(job, checkpoint.load(job.checkpoint), _InOrder(), counts)
        return counts
    if resume and not job.source.files:
        raise UserError("--resume: standard input can't be read again", "read from a file")
    if resume and output.exists() and not overwrite:
        logger.info("%s: complete already", output)
        return counts
    manifest = checkpoint.load(job.checkpoint)  # once: it reads all of the checkpoint
    parts = Parts(output, _about(job, manifest), resume=resume, overwrite=overwrite)
    _answer(job, manifest, parts.write, counts, parts.done)
    parts.finish()
    return counts


def _about(job: Job, manifest: pb.Checkpoint) -> dict[str, Any]:
    """Returns what the answers depend on."""
    return {
        "version": __version__,
        "checkpoint": checkpoint.version_of(manifest) if manifest.files else str(job.checkpoint.resolve()),
        "input": job.source.state(),
        "shard": str(job.source.shard),
        "columns": dict(job.columns),
        "options": asdict(job.options),
        "window": WINDOW,
    }


class _InOrder:
    """Prints windows in their order, whichever is answered first."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, list[Row]] = {}

    def __call__(self, number: int, rows: Iterable[Row]) -> None:
        self._waiting[number] = list(rows)
        while (ready := self._waiting.pop(self._next, None)) is not None:
            sys.stdout.writelines(dumps(row) + "\n" for row in ready)
            sys.stdout.flush()
            self._next += 1


def _answer(
    job: Job,
    manifest: pb.Checkpoint,
    write: Callable[[int, Iterable[Row]], object],
    counts: Counts,
    done: Collection[int] = (),
) -> None:
    """Answers all windows but those that are done already."""
    numbered = enumerate(job.source.windows())
    first = next(numbered, None)
    if first is None:
        raise UserError("there are no rows to answer", "each line, row or array entry is one")
    task = _task(job, manifest, first[1])

    def written(number: int, rows: Iterable[Row]) -> None:
        kept = list(rows)
        counts.rows += len(kept)
        counts.errors += sum(ERROR in row for row in kept)
        write(number, kept)

    with _serving(job.checkpoint, task) as address, tqdm(total=job.source.count(), unit="row") as bar:

        def windows() -> Iterator[tuple[int, Sequence[Raw]]]:
            for number, rows in itertools.chain((first,), numbered):
                if number in done:
                    # Not as work of this run, from which the time left is computed.
                    bar.initial += len(rows)
                    bar.update(len(rows))
                else:
                    yield number, rows

        async def run() -> None:
            async with AsyncClient(address, key="") as client:
                await Asking(client, _MODEL, task, job.columns, written, bar.update).answer(windows())

        asyncio.run(run())


def _task(job: Job, manifest: pb.Checkpoint, rows: Sequence[Raw]) -> Task:
    """Returns what is predicted. Raises UserError if none of the first rows can be answered: then none will be."""
    good = [(where, row) for where, row in rows if isinstance(row, dict)]
    if not good:
        raise UserError(f"{rows[0][0]}: {rows[0][1]}", "check the file's format")
    for name, column in job.columns.items():
        if not any(column in row for _, row in good):
            there = ", ".join(map(str, good[0][1]))
            raise UserError(f"--column {name}={column}: no such column", f"there are: {there}")
    named = [(where, renamed(row, job.columns)) for where, row in good]
    task = task_of(manifest, named[0][1], job.options)
    problems = []
    for where, row in named:
        try:
            task.read(row)
        except ValueError as error:
            problems.append(f"{where}: {error}")
        else:
            return task
    raise UserError(problems[0], "name the file's columns, for example --column text=review")


@contextmanager
def _serving(directory: Path, task: Task) -> Iterator[str]:
    """Serves a checkpoint; yields the address."""
    with tempfile.TemporaryDirectory(prefix="tuneserve-") as scratch:
        config = Path(scratch, "serve.yaml")
        # There are no other callers, so no call waits too long.
        model = {"path": str(directory.resolve()), "max_queue": 2 * task.calls, "max_wait_seconds": 1e6}
        config.write_text(yaml.safe_dump({"models": {_MODEL: model}, "log_requests": False}), encoding="utf-8")
        with launched("--config", str(config)) as server:
            yield server.addresses.grpc
