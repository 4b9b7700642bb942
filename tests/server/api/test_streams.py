"""Many requests on one stream: side by side, bounded, and whole at their end."""

import asyncio
from contextlib import aclosing

import pytest

from tuneserve.server.api import streams
from tuneserve.server.call import context
from tuneserve.server.call.tenants import ANYBODY
from tuneserve.server.metrics import Metrics


@pytest.fixture(autouse=True)
def whole() -> context.Call:
    """The call of the stream."""
    call = context.Call("id", "ModelStreamInfer", ANYBODY, {}, Metrics())
    context.begin(call)
    return call


async def requests(*items):
    for item in items:
        yield item


async def collected(items, answers, most=4):
    async with asyncio.timeout(20), aclosing(streams.answered(items, answers, most)) as found:
        return [answer async for answer in found]


async def test_answers_come_side_by_side_and_in_order_for_each_request():
    both = asyncio.Barrier(2)

    async def answers(name):
        for index in range(3):
            # Passes only when both requests are under way.
            await asyncio.wait_for(both.wait(), 5)
            yield name, index

    found = await collected(requests("a", "b"), answers)
    for name in "ab":
        assert [index for one, index in found if one == name] == [0, 1, 2]
    assert len(found) == 6


async def test_no_more_than_so_many_run_and_no_more_are_read():
    running = peak = read = 0
    go = asyncio.Event()

    async def many():
        nonlocal read
        for index in range(20):
            read += 1
            yield index

    async def answers(index):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await go.wait()
        yield index
        running -= 1

    collecting = asyncio.create_task(collected(many(), answers, most=3))
    for _ in range(50):
        await asyncio.sleep(0)
    # One more was read, and waits for a place.
    assert (running, read) == (3, 4)
    go.set()
    assert sorted(await collecting) == list(range(20))
    assert (running, peak) == (0, 3)


async def test_a_slow_reader_holds_the_answers_back():
    made = 0

    async def answers(_):
        nonlocal made
        for index in range(100):
            made += 1
            yield index

    async with asyncio.timeout(20), aclosing(streams.answered(requests("a"), answers, 4)) as found:
        assert await anext(found) == 0
        for _ in range(50):
            await asyncio.sleep(0)
        assert made <= 4


@pytest.mark.parametrize("after", [0, 1])
async def test_leaving_ends_what_runs(after):
    ended = []

    async def answers(name):
        try:
            yield name
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def endless():
        yield "a"
        yield "b"
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    async with asyncio.timeout(20), aclosing(streams.answered(endless(), answers, 4)) as found:
        assert await anext(found) == "a"
        for _ in range(after * 20):
            await asyncio.sleep(0)
    assert set(ended) <= {"a", "b"}
    assert "a" in ended
    assert asyncio.all_tasks() == before


async def test_an_unexpected_error_ends_the_stream():
    async def answers(name):
        yield name
        raise ZeroDivisionError

    async def broken():
        yield "a"
        raise ConnectionError

    async def fine(name):
        yield name

    before = asyncio.all_tasks()
    with pytest.raises(ZeroDivisionError):
        await collected(requests("a"), answers)
    with pytest.raises(ConnectionError):
        await collected(broken(), fine)
    assert asyncio.all_tasks() == before


async def test_each_request_begins_in_its_turn(whole):
    turns, begun = asyncio.Queue(), []
    whole.enter = turns.get

    async def answers(name):
        begun.append(name)
        yield name

    collecting = asyncio.create_task(collected(requests("a", "b", "c"), answers))
    for count in range(4):
        for _ in range(20):
            await asyncio.sleep(0)
        assert begun == ["a", "b", "c"][:count]
        await turns.put(None)
    assert await collecting == begun


async def test_requests_of_a_stream_are_calls_of_their_own(whole):

    async def answers(name):
        with streams.part() as call:
            assert context.current() is call
            call.model = name
            call.prompt_tokens += 3
            call.completion_tokens += 1
            call.stages.append(context.Stage("engine", 0, 1))
            await asyncio.sleep(0)
            yield context.current().model, call.ticket().request_id

    found = await collected(requests("a", "b", "c"), answers)
    assert sorted(name for name, _ in found) == ["a", "b", "c"]
    # Each has an id of its own in the engine.
    assert len({ticket for _, ticket in found}) == 3
    assert (whole.prompt_tokens, whole.completion_tokens) == (9, 3)
    # A stream may live for days.
    assert not whole.stages
