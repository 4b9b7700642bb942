"""Work side by side, a bounded number at a time, that ends whole: nothing of it runs on when its caller has gone. And
work that the event loop does itself, without holding it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

# Seconds of work on the event loop after which others have their turn.
_TURN = 0.01


class in_turns(Generic[In]):
    """Yields the items of work that the event loop does itself; whenever that took some milliseconds, others go first.

    What is done with each item should be short. No generator, which somebody would have to close.
    """

    def __init__(self, items: Iterable[In]) -> None:
        self._items = iter(items)
        self._since = time.monotonic()

    def __aiter__(self) -> AsyncIterator[In]:
        return self

    async def __anext__(self) -> In:
        if time.monotonic() - self._since > _TURN:
            await asyncio.sleep(0)
            self._since = time.monotonic()
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None


def pieces(items: Sequence[In], size: Callable[[In], int], enough: int) -> Iterator[Sequence[In]]:
    """Yields runs of items, in their order, that end where their sizes are enough for a thread to take at a time."""
    start = total = 0
    for index, item in enumerate(items):
        total += size(item)
        if total >= enough:
            yield items[start : index + 1]
            start, total = index + 1, 0
    if start < len(items):
        yield items[start:]


async def together(work: Callable[[In], Awaitable[Out]], items: Sequence[In], limit: int) -> list[Out]:
    """Returns `work` of each item, in their order. The first failure ends the others and is raised."""
    found: dict[int, Out] = {}
    left = iter(enumerate(items))

    async def some() -> None:
        # Each takes the next that is left: thousands of tasks that wait would all have their turn at once.
        for index, item in left:
            found[index] = await work(item)

    tasks = [asyncio.create_task(some()) for _ in range(min(limit, len(items)))]
    try:
        await asyncio.gather(*tasks)
        return [found[index] for index in range(len(items))]
    finally:
        running = [task for task in tasks if not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Does what must not be left half done: a caller that is cancelled meanwhile hears of it only afterwards."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise
