"""Work side by side, a bounded number at a time, that ends whole: nothing of it runs on when its caller has gone. And
work that the event loop does itself, without holding it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
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


async def together(work: Callable[[In], Awaitable[Out]], items: Sequence[In], limit: int) -> list[Out]:
    """Returns `work` of each item, in their order. The first failure ends the others and is raised."""
    room = asyncio.Semaphore(limit)

    async def one(item: In) -> Out:
        async with room:
            return await work(item)

    tasks = [asyncio.create_task(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
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
