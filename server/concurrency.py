"""Work side by side, a bounded number at a time, that ends whole: nothing of it runs on when its caller has gone."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
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
        running = [task for task in tasks if not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
