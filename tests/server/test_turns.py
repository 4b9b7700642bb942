import asyncio
import itertools
import threading
import time

import pytest

from tuneserve.server import turns


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_work_in_turns_lets_others_go_first():
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    done = []
    async for number in turns.in_turns(range(30)):
        done.append(number)
        end = time.monotonic() + 0.002
        while time.monotonic() < end:
            pass
    task.cancel()
    assert done == list(range(30))
    assert others >= 3
    # What is soon done is not interrupted.
    before = others
    assert [number async for number in turns.in_turns([1, 2])] == [1, 2]
    assert others == before


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


async def test_many_calls_work_no_longer_at_a_time_than_one(monkeypatch):
    """Each in its turn: forty that worked ten milliseconds each held the loop for 0.4 s a time."""
    monkeypatch.setattr(turns, "_TURN", 0.002)
    took, ended = [], []

    async def call(items: int) -> None:
        for _ in range(3):  # as one that converts several lists
            async for _ in turns.in_turns(range(items)):
                took[-1] += 1
                spin(0.0005)
        ended.append(items)

    async def count() -> None:
        while len(ended) < 41:
            took.append(0)
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await asyncio.sleep(0)
    calls = [asyncio.create_task(call(20)) for _ in range(40)]
    for _ in range(20):
        await asyncio.sleep(0)
    calls.append(asyncio.create_task(call(1)))
    await asyncio.gather(*calls, counting)
    # Two turns of 2 ms: that of the one that waited, and that of those who come. An item before each of them, too.
    assert max(took) <= 12
    assert ended.index(1) < 5, "one that has worked little goes before those that have worked much"


async def test_one_that_is_given_up_while_it_waits_holds_up_nobody(monkeypatch):
    monkeypatch.setattr(turns, "_TURN", 0.0005)
    done = []

    async def call(number: int) -> None:
        async for _ in turns.in_turns(range(20)):
            spin(0.0002)
        done.append(number)

    calls = [asyncio.create_task(call(number)) for number in range(20)]
    await settled()
    for task in calls[::2]:
        task.cancel()
    await asyncio.wait(calls)
    assert set(done) >= set(range(1, 20, 2))
    assert not turns._turns()._waiting


async def test_all_get_on_whoever_comes(monkeypatch):
    """One that has worked much is not kept waiting by ever new ones that have not."""
    monkeypatch.setattr(turns, "_TURN", 0.0005)
    old = asyncio.create_task(_spins(200))
    new: set[asyncio.Task[None]] = set()
    while not old.done():
        new.add(asyncio.create_task(_spins(2)))
        await asyncio.sleep(0)
        assert len(new) < 20_000
    await asyncio.gather(*new)


async def _spins(items: int) -> None:
    async for _ in turns.in_turns(range(items)):
        spin(0.0002)


async def test_callers_have_their_turns_one_after_the_other_however_much_each_has():
    """One with a thousand waiting, and one that comes after all of them."""
    order: list[str] = []

    async def works(caller: str) -> None:
        async for _ in turns.in_turns(range(3)):
            time.sleep(0.004)  # noqa: ASYNC251 - the work of the loop itself
        order.append(caller)

    async def of(caller: str, count: int) -> None:
        turns.belongs_to(caller)
        await asyncio.gather(*(works(caller) for _ in range(count)))

    crowd = asyncio.create_task(of("many", 60))
    await asyncio.sleep(0.05)
    await of("one", 1)
    assert len(order) < 30
    crowd.cancel()
    await asyncio.gather(crowd, return_exceptions=True)


async def test_calls_begin_one_by_one_and_callers_in_turns():
    entrance, begun = turns.Entrance(), []

    async def call(caller: str) -> None:
        turns.belongs_to(caller)
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
    entrance = turns.Entrance()
    calls = [asyncio.create_task(entrance.enter()) for _ in range(5)]
    await asyncio.sleep(0)
    for call in calls[1:4]:
        call.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*calls, return_exceptions=True)
        await entrance.enter()
    assert [call.cancelled() for call in calls] == [False, True, True, True, False]


async def test_threads_are_shared_by_callers():
    threads = turns.Threads(2, "test")
    order: list[str] = []

    def work(caller: str) -> None:
        time.sleep(0.002)
        order.append(caller)

    async def of(caller: str, count: int) -> None:
        turns.belongs_to(caller)
        await asyncio.gather(*(threads.run(work, caller) for _ in range(count)))

    crowd = asyncio.create_task(of("many", 200))
    await asyncio.sleep(0.02)
    await asyncio.create_task(of("one", 1))
    assert len(order) < 100
    await crowd
    assert order.count("many") == 200
    threads.close()


async def test_threads_are_free_again_whoever_gave_up():
    threads = turns.Threads(1, "test")
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
    threads = turns.Threads(1, "test")
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
