"""Work side by side, a bounded number at a time, that ends whole: nothing of it runs on when its caller has gone."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


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
        await _end(tasks)


async def answers(
    work: Callable[[In], Awaitable[Out]], items: AsyncIterable[In], limit: int
) -> AsyncGenerator[Out, None]:
    """Yields `work` of each item as it is ready, in any order. No more items are read while `limit` of them run or wait
    to be taken. Ends after the last answer once the items have ended. `work` must not raise.
    """
    room = asyncio.Semaphore(limit)
    ready: asyncio.Queue[Out | None] = asyncio.Queue()
    tasks: set[asyncio.Task[None]] = set()

    async def one(item: In) -> None:
        ready.put_nowait(await work(item))

    async def read() -> None:
        try:
            await room.acquire()
            async for item in items:
                task = asyncio.create_task(one(item))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await room.acquire()
            if tasks:
                await asyncio.wait(tasks)
        finally:
            ready.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (answer := await ready.get()) is not None:
            yield answer
            # Only now: an answer that its caller has not taken holds its place.
            room.release()
        await reader
    finally:
        await _end([reader, *tasks])


async def _end(tasks: Iterable["asyncio.Task[Out] | asyncio.Task[None]"]) -> None:
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
