"""Asks a server for the answers to one window of rows after another."""

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneserve.checkpoint.rows import Row
from tuneserve.client import AsyncClient, errors
from tuneserve.errors import StepFailed
from tuneserve.formats import Raw
from tuneserve.predict.tasks import ERROR, Answer, Task, renamed

# Bytes of text in one call, which may have 4 MiB in all; a text that alone has more is refused here.
_CALL_BYTES, _MOST_BYTES = 1 << 20, 4_000_000
# Asked again after an engine's failure, which takes some seconds to restart.
_ATTEMPTS, _PAUSE_SECONDS = 4, 10.0
_PLACE = re.compile(r"\[(\d+)\]")


@dataclass(slots=True)
class Line:
    """A row, and what became of it."""

    row: Row
    input: Any = None
    size: int = 0
    answer: Answer | None = None  # None until it is known

    @property
    def answered(self) -> Row:
        """The row with its answer."""
        return self.row | (self.answer or {})


@dataclass(slots=True)
class _Window:
    number: int
    lines: list[Line]
    batches: list[list[Line]] = field(default_factory=list)
    left: int = 0


@dataclass(frozen=True)
class Asking:
    """Answers windows of rows."""

    client: AsyncClient
    model: str
    task: Task
    columns: Mapping[str, str]  # the names of columns in the rows, by the task's names
    # Called in a thread with each window's number and answered rows, one window after another.
    write: Callable[[int, Iterable[Row]], object]
    progress: Callable[[int], object] = lambda rows: None
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def answer(self, windows: Iterator[tuple[int, Sequence[Raw]]]) -> None:
        """Answers windows, which are read in a thread. Raises StepFailed if the server can't answer."""
        jobs: asyncio.Queue[tuple[_Window, list[Line]] | None] = asyncio.Queue(self.task.calls)

        async def work() -> None:
            while job := await jobs.get():
                window, batch = job
                await self._ask(batch)
                self.progress(len(batch))
                window.left -= 1
                await self._written(window)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.task.calls):
                    group.create_task(work())
                while read := await asyncio.to_thread(next, windows, None):
                    window = await asyncio.to_thread(self._window, *read)
                    self.progress(len(window.lines) - sum(map(len, window.batches)))
                    for batch in window.batches:
                        await jobs.put((window, batch))
                    if not window.batches:
                        await self._written(window)
                for _ in range(self.task.calls):
                    await jobs.put(None)
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _written(self, window: _Window) -> None:
        if not window.left:
            async with self._writing:
                await asyncio.to_thread(self.write, window.number, (line.answered for line in window.lines))

    def _window(self, number: int, rows: Sequence[Raw]) -> _Window:
        window = _Window(number, [self._line(*raw) for raw in rows])
        good = [line for line in window.lines if line.answer is None]
        # Texts of one call have about the same length. The longest first: then no long one is left alone at the end.
        good.sort(key=lambda line: line.size, reverse=True)
        window.batches = list(_batches(good, self.task.batch))
        window.left = len(window.batches)
        return window

    def _line(self, where: str, row: Row | str) -> Line:
        if isinstance(row, str):
            return Line({}, answer={ERROR: f"{where}: {row}"})
        line = Line(row)
        try:
            line.input = self.task.read(renamed(row, self.columns))
            line.size = _size(line.input)
            if line.size > _MOST_BYTES:
                raise ValueError(f"has {line.size} bytes; allowed: {_MOST_BYTES}")
        except ValueError as error:
            line.answer = {ERROR: f"{where}: {error}"}
        return line

    async def _ask(self, batch: Sequence[Line]) -> None:
        """Answers rows with one call; those that the server refuses get its reason, and the others are asked again."""
        try:
            answers = await self._asked([line.input for line in batch])
        except (errors.InvalidInput, ValueError) as error:
            refused = _refused(error) if isinstance(error, errors.InvalidInput) else {}
            if len(batch) == 1:
                batch[0].answer = {ERROR: refused.get(0, str(error))}
                return
            for place, reason in refused.items():
                if place < len(batch):
                    batch[place].answer = {ERROR: reason}
            rest = [line for line in batch if line.answer is None]
            # If the server did not say which, each alone.
            for again in [rest] if rest and len(rest) < len(batch) else [[line] for line in rest]:
                await self._ask(again)
        else:
            for line, answer in zip(batch, answers, strict=True):
                line.answer = answer

    async def _asked(self, inputs: Sequence[Any]) -> list[Answer]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self.task.ask(self.client, self.model, inputs)
            except errors.InvalidInput:
                raise
            except errors.CallError as error:
                if attempt == _ATTEMPTS or not isinstance(error, errors.Unavailable | errors.Overloaded):
                    told = f"the server answered {error.code.name}: {error}"
                    raise StepFailed(told, "continue with --resume: the answers so far are kept") from error
            await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError


def _batches(lines: Sequence[Line], most: int) -> Iterator[list[Line]]:
    batch, size = list[Line](), 0
    for line in lines:
        if batch and (len(batch) == most or size + line.size > _CALL_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += line.size
    if batch:
        yield batch


def _refused(error: errors.InvalidInput) -> dict[int, str]:
    """Returns the reason for each input that was refused."""
    found = {}
    for violation in error.violations:
        if place := _PLACE.search(violation.field):
            found[int(place[1])] = f"{violation.field[place.end() :].lstrip('.') or 'text'} {violation.description}"
    return found


def _size(value: Any) -> int:
    """Returns the bytes of all texts in an input."""
    if isinstance(value, str):
        return len(value.encode(errors="surrogatepass"))
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0
