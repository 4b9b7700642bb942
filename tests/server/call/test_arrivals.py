"""Requests on their way in, without a wire. `_SOON_SECONDS` is short here, so that tests need not wait."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from tuneserve.server.call import arrivals
from tuneserve.server.call.arrivals import Arrivals
from tuneserve.server.call.errors import InvalidInput, Unavailable


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(arrivals, "_SOON_SECONDS", 0.01)
    monkeypatch.setattr(arrivals, "_CANCELLED_SECONDS", 0.01)


@dataclass
class Reading:
    """A call whose message comes when `comes` says so."""

    comes: asyncio.Future[Any]

    async def read(self) -> Any:
        return await self.comes


def reading(message: Any = None) -> Reading:
    comes = asyncio.get_running_loop().create_future()
    if message is not None:
        comes.set_result(message)
    return Reading(comes)


async def test_what_is_there_is_read():
    assert await Arrivals(1, 1.0).read(reading("message")) == "message"


async def test_no_message_may_take_for_ever():
    with pytest.raises(Unavailable, match=r"did not arrive within 0\.03 s"):
        await Arrivals(1, 0.03).read(reading())


async def test_a_call_without_a_message():
    with pytest.raises(InvalidInput, match="there is no message"):
        await Arrivals(1, 1.0).read(reading(grpc.aio.EOF))


async def test_one_too_many_ends_the_one_that_took_longest(until):
    here = Arrivals(2, 30.0)
    calls = [reading() for _ in range(3)]
    tasks = []
    for call in calls:
        tasks.append(asyncio.create_task(here.read(call)))
        await asyncio.sleep(0.03)
    with pytest.raises(Unavailable, match="too many others did"):
        await tasks[0]
    for call, task in zip(calls[1:], tasks[1:], strict=True):
        call.comes.set_result("late")
        assert await task == "late"
    assert not here.under_way


async def test_what_is_quick_ends_nobody():
    here = Arrivals(1, 30.0)
    slow = reading()
    task = asyncio.create_task(here.read(slow))
    await asyncio.sleep(0.03)
    for _ in range(20):
        assert await here.read(reading("quick")) == "quick"
    slow.comes.set_result("late")
    assert await task == "late"


async def test_a_timeout_of_others_is_their_own():
    here = Arrivals(1, 30.0)
    for block in (here.place, here.stream):
        with pytest.raises(TimeoutError):
            async with block():
                raise TimeoutError
    assert not here.under_way


async def test_a_stream_may_wait_until_it_is_ended():
    here = Arrivals(1, 0.01)

    async def stream() -> None:
        async with here.stream():
            await asyncio.sleep(30)

    task = asyncio.create_task(stream())
    await asyncio.sleep(0.05)
    assert here.under_way
    assert not task.done()
    assert here.end_all("no more") == 1
    with pytest.raises(Unavailable, match="no more"):
        await task
    assert not here.under_way


async def test_short_memory_ends_what_is_on_its_way(caplog):
    here, other, free = Arrivals(1, 30.0), Arrivals(1, 30.0), [1 << 40]
    guard = asyncio.create_task(arrivals.guard([here, other], lambda: free[0]))
    tasks = [asyncio.create_task(one.read(reading())) for one in (here, other)]
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in tasks)
    with caplog.at_level(logging.ERROR):
        free[0] = 1 << 20
        for task in tasks:
            with pytest.raises(Unavailable, match="memory is short"):
                await task
        guard.cancel()
        with pytest.raises(asyncio.CancelledError):
            await guard
    assert "2 calls were ended" in caplog.text
