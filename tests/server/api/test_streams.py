"""Many requests on one stream: side by side, bounded, and whole at their end."""

import asyncio
from collections import Counter
from contextlib import aclosing

import pytest
from google.rpc import code_pb2

from tuneserve.server.api import streams
from tuneserve.server.call import context
from tuneserve.server.call.errors import InvalidInput, Overloaded
from tuneserve.server.call.tenants import ANYBODY
from tuneserve.server.call.wire import Received
from tuneserve.server.engine.interface import EngineFailed
from tuneserve.server.metrics import Metrics
from tuneserve.v1 import classification_pb2


@pytest.fixture(autouse=True)
def whole() -> context.Call:
    """The call of the stream."""
    call = context.Call("id", "ModelStreamInfer", ANYBODY, {}, Metrics())
    context.begin(call)
    return call


async def requests(*items):
    for item in items:
        yield item


def each(answers):
    """Answers one request at a time."""

    def of(some):
        [request] = some
        return answers(request)

    return of


async def collected(items, answers, most=4):
    async with asyncio.timeout(20), aclosing(streams.answered(items, each(answers), most)) as found:
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

    async with asyncio.timeout(20), aclosing(streams.answered(requests("a"), each(answers), 4)) as found:
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
    async with asyncio.timeout(20), aclosing(streams.answered(endless(), each(answers), 4)) as found:
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


class Gathering:
    """A stream whose requests begin with their kind. Each is answered with its name, as a call of its own."""

    def __init__(self, most: int = 64) -> None:
        self.begun: list[list[str]] = []
        self.requests = asyncio.Queue[str | None]()
        self.found = streams.answered(self._come(), self._answers, most, lambda name: name.strip("0123456789") or None)

    async def _come(self):
        while name := await self.requests.get():
            yield name

    async def _answers(self, some):
        self.begun.append(list(some))
        with streams.part() as call:
            call.prompt_tokens += len(some)
            await asyncio.sleep(0)
        for name in some:
            yield name

    async def come(self, *names: str) -> None:
        for name in names:
            self.requests.put_nowait(name)
        for _ in range(20 * len(names)):
            await asyncio.sleep(0)

    async def sending(self) -> None:
        """Until answers wait to be sent: one more than there is room for."""
        await self.come("x1", "x2", "x3")
        assert await anext(self.found) == "x1"
        for _ in range(20):
            await asyncio.sleep(0)

    async def rest(self) -> list[str]:
        self.requests.put_nowait(None)
        async with asyncio.timeout(20), aclosing(self.found):
            return [name async for name in self.found]


async def test_a_request_begins_at_once_unless_answers_are_sent():
    stream = Gathering()
    await stream.sending()
    assert stream.begun == [["x1"], ["x2"], ["x3"]]
    await stream.come("a1", "a2", "a3")
    assert stream.begun == [["x1"], ["x2"], ["x3"]]
    assert await stream.rest() == ["x2", "x3", "a1", "a2", "a3"]
    assert stream.begun[3:] == [["a1", "a2", "a3"]]


async def test_only_those_that_are_alike_begin_together():
    stream = Gathering()
    await stream.sending()
    await stream.come("a1", "b1", "1", "a2", "2")
    # What is like nothing else does not wait.
    assert stream.begun[3:] == [["1"], ["2"]]
    assert sorted(await stream.rest()) == ["1", "2", "a1", "a2", "b1", "x2", "x3"]
    assert stream.begun[5:] == [["a1", "a2"], ["b1"]]


async def test_a_full_group_begins_while_answers_are_sent():
    stream = Gathering()
    await stream.sending()
    names = [f"a{index}" for index in range(streams.TOGETHER + 2)]
    await stream.come(*names)
    assert stream.begun[3:] == [names[:-2]]
    assert sorted(await stream.rest()) == sorted([*names, "x2", "x3"])
    assert stream.begun[4:] == [names[-2:]]


async def test_those_that_gather_have_places_and_count_for_the_whole_stream(whole):
    stream = Gathering(most=5)
    await stream.sending()
    # One answer waits for room, so there are four places.
    await stream.come(*(f"a{index}" for index in range(9)))
    assert stream.requests.qsize() == 9 - 4 - 1, "one more was read"
    assert len(await stream.rest()) == 11
    assert sorted(Counter(name for some in stream.begun for name in some).values()) == [1] * 12
    assert whole.prompt_tokens == 12


async def test_leaving_ends_those_that_gather():
    before = asyncio.all_tasks()
    stream = Gathering()
    await stream.sending()
    await stream.come("a1", "a2")
    await stream.found.aclose()
    assert asyncio.all_tasks() == before
    assert len(stream.begun) == 3


class Service:
    """Answers requests by their names, together or alone, unless they are told to fail."""

    def __init__(self, **failing: Exception) -> None:
        self.failing = failing
        self.alone: list[str] = []

    async def one(self, name: str) -> str:
        self.alone.append(name)
        if name in self.failing:
            raise self.failing[name]
        context.current().prompt_tokens += 1
        return name

    async def together(self, names) -> list[str]:
        assert context.current().requests == len(names)
        for name in names:
            if name in self.failing:
                raise self.failing[name]
        context.current().prompt_tokens += len(names)
        return list(names)

    async def outcomes(self, *names: str) -> list:
        found = await streams.outcomes([Received(name, 100) for name in names], self.one, self.together)
        return [one.code if isinstance(one, classification_pb2.Error) else one for one in found]


async def test_several_are_answered_together(whole):
    service = Service()
    assert await service.outcomes("a", "b", "c") == ["a", "b", "c"]
    assert service.alone == []
    assert await service.outcomes("d") == ["d"]
    assert service.alone == ["d"]
    assert whole.prompt_tokens == 4
    assert whole.requests == 1
    assert context.current() is whole


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("text", "is bad"), code_pb2.INVALID_ARGUMENT),
        (ArithmeticError("not a number"), code_pb2.INTERNAL),
        (Overloaded("no room for all", "QUEUE_FULL", 100), code_pb2.RESOURCE_EXHAUSTED),
        (Overloaded("no room for all", "QUEUE_TOKENS", 100), code_pb2.RESOURCE_EXHAUSTED),
    ],
)
async def test_one_that_fails_fails_alone(error, code):
    service = Service(b=error)
    assert await service.outcomes("a", "b", "c") == ["a", code, "c"]
    assert service.alone == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineFailed(), code_pb2.UNAVAILABLE),
        (Overloaded("waited long", "QUEUE_WAIT", 100), code_pb2.RESOURCE_EXHAUSTED),
    ],
)
async def test_what_all_have_waited_for_is_not_tried_again(error, code):
    service = Service(b=error)
    assert await service.outcomes("a", "b", "c") == [code] * 3
    assert service.alone == []


async def test_each_counts_against_the_quota(whole):
    left = iter(range(3))

    def admit():
        if next(left, None) is None:
            raise Overloaded("spent", "REQUEST_QUOTA", 100)

    whole.admit = admit
    service = Service(b=InvalidInput("text", "is bad"))
    spent = code_pb2.RESOURCE_EXHAUSTED
    assert await service.outcomes("a", "b", "c", "d", "e") == ["a", code_pb2.INVALID_ARGUMENT, "c", spent, spent]
    assert await service.outcomes("a") == [spent]
