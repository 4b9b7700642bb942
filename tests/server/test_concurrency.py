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


async def counted(total: int, seen: list[int]):
    for number in range(total):
        seen.append(number)
        yield number


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


async def test_answers_come_as_they_are_ready_and_all_of_them():
    async def slow_first(number: int) -> int:
        await asyncio.sleep(0.05 if number == 0 else 0)
        return number

    async with asyncio.timeout(10):
        found = [one async for one in concurrency.answers(slow_first, counted(9, []), 4)]
    assert sorted(found) == list(range(9))
    assert found[0] != 0


async def test_no_more_is_read_than_runs_or_waits_to_be_taken():
    work, seen = Work(), []
    answers = concurrency.answers(work, counted(100, seen), 4)
    first = asyncio.create_task(anext(answers))
    await settled()
    assert len(seen) == 4
    work.go.set()
    await first
    await settled()
    # Ready, but not taken: the first is still in its caller's hands.
    assert len(seen) == 4
    await anext(answers)
    await settled()
    assert len(seen) == 5
    await answers.aclose()


async def test_closing_ends_what_runs():
    work, seen = Work(), []
    answers = concurrency.answers(work, counted(100, seen), 4)
    first = asyncio.create_task(anext(answers))
    await settled()
    assert work.running == 4
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await answers.aclose()
    assert work.running == 0
    assert work.cancelled == 4


async def test_items_that_fail_end_the_answers_with_their_error():
    async def failing():
        yield 1
        raise ConnectionError("gone")

    async def same(number: int) -> int:
        return number

    with pytest.raises(ConnectionError, match="gone"):
        [one async for one in concurrency.answers(same, failing(), 4)]
