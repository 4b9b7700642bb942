import asyncio
import gc
import itertools
import threading
import time

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


async def test_work_in_turns_lets_others_go_first():
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    done = []
    async for number in concurrency.in_turns(range(30)):
        done.append(number)
        end = time.monotonic() + 0.002
        while time.monotonic() < end:
            pass
    task.cancel()
    assert done == list(range(30))
    assert others >= 3
    # What is soon done is not interrupted.
    before = others
    assert [number async for number in concurrency.in_turns([1, 2])] == [1, 2]
    assert others == before


def test_pieces_are_all_of_it_in_order():
    found = [list(piece) for piece in concurrency.pieces([5, 1, 1, 9, 2, 3, 1], lambda one: one, 6)]
    assert found == [[5, 1], [1, 9], [2, 3, 1]]
    assert [list(piece) for piece in concurrency.pieces([9, 9, 1], lambda one: one, 6)] == [[9], [9], [1]]
    assert list(concurrency.pieces([], lambda one: one, 6)) == []


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


async def test_many_calls_work_no_longer_at_a_time_than_one(monkeypatch):
    """Each in its turn: forty that worked ten milliseconds each held the loop for 0.4 s a time."""
    monkeypatch.setattr(concurrency, "_TURN", 0.002)
    turns, ended = [], []

    async def call(items: int) -> None:
        for _ in range(3):  # as one that converts several lists
            async for _ in concurrency.in_turns(range(items)):
                turns[-1] += 1
                spin(0.0005)
        ended.append(items)

    async def count() -> None:
        while len(ended) < 41:
            turns.append(0)
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await asyncio.sleep(0)
    calls = [asyncio.create_task(call(20)) for _ in range(40)]
    for _ in range(20):
        await asyncio.sleep(0)
    calls.append(asyncio.create_task(call(1)))
    await asyncio.gather(*calls, counting)
    # Two turns of 2 ms: that of the one that waited, and that of those who come. An item before each of them, too.
    assert max(turns) <= 12
    assert ended.index(1) < 5, "one that has worked little goes before those that have worked much"


async def test_one_that_is_given_up_while_it_waits_holds_up_nobody(monkeypatch):
    monkeypatch.setattr(concurrency, "_TURN", 0.0005)
    done = []

    async def call(number: int) -> None:
        async for _ in concurrency.in_turns(range(20)):
            spin(0.0002)
        done.append(number)

    calls = [asyncio.create_task(call(number)) for number in range(20)]
    await settled()
    for task in calls[::2]:
        task.cancel()
    await asyncio.wait(calls)
    assert set(done) >= set(range(1, 20, 2))
    assert not concurrency._turns()._waiting


async def test_all_get_on_whoever_comes(monkeypatch):
    """One that has worked much is not kept waiting by ever new ones that have not."""
    monkeypatch.setattr(concurrency, "_TURN", 0.0005)
    old = asyncio.create_task(_spins(200))
    new: set[asyncio.Task[None]] = set()
    while not old.done():
        new.add(asyncio.create_task(_spins(2)))
        await asyncio.sleep(0)
        assert len(new) < 20_000
    await asyncio.gather(*new)


async def _spins(items: int) -> None:
    async for _ in concurrency.in_turns(range(items)):
        spin(0.0002)


async def test_callers_have_their_turns_one_after_the_other_however_much_each_has():
    """One with a thousand waiting, and one that comes after all of them."""
    order: list[str] = []

    async def works(caller: str) -> None:
        async for _ in concurrency.in_turns(range(3)):
            time.sleep(0.004)  # noqa: ASYNC251 - the work of the loop itself
        order.append(caller)

    async def of(caller: str, count: int) -> None:
        concurrency.belongs_to(caller)
        await asyncio.gather(*(works(caller) for _ in range(count)))

    crowd = asyncio.create_task(of("many", 60))
    await asyncio.sleep(0.05)
    await of("one", 1)
    assert len(order) < 30
    crowd.cancel()
    await asyncio.gather(crowd, return_exceptions=True)


async def test_calls_begin_one_by_one_and_callers_in_turns():
    entrance, begun = concurrency.Entrance(), []

    async def call(caller: str) -> None:
        concurrency.belongs_to(caller)
        await entrance.enter()
        begun.append(caller)

    calls = [asyncio.create_task(call(caller)) for caller in "aaaaaaab"]
    rounds = []
    while not all(one.done() for one in calls):
        await asyncio.sleep(0)
        rounds.append(len(begun))
    assert max(later - before for before, later in itertools.pairwise([0, *rounds])) == 1
    assert begun.index("b") <= 2
    assert sorted(begun) == list("aaaaaaab")


async def test_who_gives_up_at_the_entrance_holds_up_nobody():
    entrance = concurrency.Entrance()
    calls = [asyncio.create_task(entrance.enter()) for _ in range(5)]
    await asyncio.sleep(0)
    for call in calls[1:4]:
        call.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*calls, return_exceptions=True)
        await entrance.enter()
    assert [call.cancelled() for call in calls] == [False, True, True, True, False]


async def test_threads_are_shared_by_callers():
    threads = concurrency.Threads(2, "test")
    order: list[str] = []

    def work(caller: str) -> None:
        time.sleep(0.002)
        order.append(caller)

    async def of(caller: str, count: int) -> None:
        concurrency.belongs_to(caller)
        await asyncio.gather(*(threads.run(work, caller) for _ in range(count)))

    crowd = asyncio.create_task(of("many", 200))
    await asyncio.sleep(0.02)
    await asyncio.create_task(of("one", 1))
    assert len(order) < 100
    await crowd
    assert order.count("many") == 200
    threads.close()


async def test_threads_are_free_again_whoever_gave_up():
    threads = concurrency.Threads(1, "test")
    running = [asyncio.create_task(threads.run(time.sleep, 0.01)) for _ in range(20)]
    await asyncio.sleep(0.005)
    for task in running[::2]:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert await asyncio.gather(*(threads.run(len, "abc") for _ in range(9))) == [3] * 9
    with pytest.raises(ZeroDivisionError):
        await threads.run(divmod, 1, 0)
    await asyncio.sleep(0.05)
    assert threads._free == 2
    threads.close()


async def test_a_turn_that_was_given_and_is_not_taken_is_free_again():
    """Who waits is cancelled between its turn and the moment that it goes on."""
    threads = concurrency.Threads(1, "test")
    go = threading.Event()
    running = [asyncio.create_task(threads.run(go.wait, 20)) for _ in range(2)]
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(threads.run(len, "abc"))
    await asyncio.sleep(0.01)
    threads._done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert threads._free == 1
    go.set()
    await asyncio.gather(*running)
    threads.close()


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
