import asyncio

import pytest

from tuneserve.server import concurrency


class Work:
    """Doubles numbers when told to go, and remembers how many ran at a time."""

    def __init__(self) -> None:
        self.running = self.most = self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self, number: int) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go.wait()
            return number * 2
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_together_keeps_order_and_bound():
    work = Work()
    work.go.set()
    assert await concurrency.together(work, list(range(20)), 3) == [number * 2 for number in range(20)]
    assert work.most <= 3


async def test_together_fails_at_once_and_ends_the_others():
    work = Work()

    async def stuck_or_failing(number: int) -> int:
        if number == 1:
            raise ValueError("one")
        return await work(number)

    with pytest.raises(ValueError, match="one"):
        await concurrency.together(stuck_or_failing, [0, 1, 2], 3)
    assert work.running == 0
    assert work.cancelled >= 1


async def test_together_ends_when_cancelled():
    work = Work()
    task = asyncio.create_task(concurrency.together(work, [1, 2, 3], 2))
    await settled()
    assert work.running == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.running == 0
