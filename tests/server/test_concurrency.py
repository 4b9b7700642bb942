import asyncio
import gc
import threading

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


async def test_one_that_waited_for_a_lock_and_was_cancelled_does_not_get_it(tmp_path):
    lock, taken = tmp_path / "lock", []

    async def take(name):
        async with concurrency.locked(lock):
            taken.append(name)

    async with concurrency.locked(lock):
        waiting = [asyncio.create_task(take(name)) for name in "ab"]
        await asyncio.sleep(0.05)
        assert taken == []
        await concurrency.end(waiting[:1])
    await waiting[1]
    assert taken == ["b"]


async def test_what_runs_apart_waits_for_nothing_and_goes_on_when_nobody_waits():
    loop, goes_on, done = asyncio.get_running_loop(), threading.Event(), threading.Event()
    sleeping = [loop.run_in_executor(None, goes_on.wait) for _ in range(100)]
    assert await concurrency.apart(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await concurrency.apart(divmod, 7, 0)
    waiting = asyncio.create_task(concurrency.apart(lambda: goes_on.wait() and done.set()))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    goes_on.set()
    await asyncio.gather(*sleeping)
    assert done.wait(10)


async def test_a_thread_that_the_system_does_not_give_is_an_error_of_the_system(monkeypatch):
    """Who limits connections goes on then, as without files."""

    def start(self) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(BlockingIOError, match="no thread"):
        await concurrency.apart(divmod, 7, 2)


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


async def test_together_leaves_nothing_for_the_collector():
    async def work(item: int) -> int:
        await asyncio.sleep(0)
        if item == 5:
            raise ValueError(item)
        return item

    async def call() -> None:
        with pytest.raises(ValueError, match="5"):
            await concurrency.together(work, range(20), 4)

    await call()
    gc.collect()
    gc.disable()
    try:
        await call()
        assert not gc.collect()
    finally:
        gc.enable()


async def test_together_ends_when_cancelled():
    work = Work()
    task = asyncio.create_task(concurrency.together(work, [1, 2, 3], 2))
    await settled()
    assert work.running == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.running == 0


async def test_merged_yields_what_comes_and_its_first_failure_ends_the_others():
    closed = []

    async def source(name: str, fails: asyncio.Event):
        try:
            yield name
            await fails.wait()
            raise ValueError(name)
        finally:
            closed.append(name)

    fails, before = asyncio.Event(), asyncio.all_tasks()
    found = concurrency.merged([source("a", asyncio.Event()), source("b", fails)])
    assert {await anext(found), await anext(found)} == {"a", "b"}
    fails.set()
    with pytest.raises(ValueError, match="b"):
        await anext(found)
    assert sorted(closed) == ["a", "b"]
    assert asyncio.all_tasks() == before


def test_pieces_are_all_of_it_in_order():
    found = [list(piece) for piece in concurrency.pieces([5, 1, 1, 9, 2, 3, 1], lambda one: one, 6)]
    assert found == [[5, 1], [1, 9], [2, 3, 1]]
    assert [list(piece) for piece in concurrency.pieces([9, 9, 1], lambda one: one, 6)] == [[9], [9], [1]]
    assert list(concurrency.pieces([], lambda one: one, 6)) == []


async def test_within_gives_back_what_the_work_gives():
    assert await concurrency.within(5, sum, [1, 2]) == 3
    with pytest.raises(ZeroDivisionError):
        await concurrency.within(5, lambda: 1 // 0)


def forever(running: list[bool]) -> None:
    """What takes no notice of anything, as libraries do."""
    try:
        while True:
            try:
                sum(range(100))
            except Exception:
                running.append(True)
    finally:
        running.clear()


@pytest.mark.parametrize("cancelled", [False, True], ids=["late", "nobody waits"])
async def test_within_ends_work_that_would_never_end(until, cancelled):
    running = [True]
    if cancelled:
        task = asyncio.create_task(concurrency.within(60, forever, running))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with pytest.raises(TimeoutError):
            await concurrency.within(0.05, forever, running)
    await until(lambda: not running)
