"""A stream's messages on their way to a client that may read nothing, on gRPC's side by hand."""

import asyncio
from contextlib import closing

import pytest

from tuneserve.server.call import context
from tuneserve.server.call.departures import LARGEST, Departures
from tuneserve.server.call.errors import InvalidInput, Unavailable
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.metrics import Metrics
from tuneserve.server.transport.writer import Writer


class Client:
    """A call's context. It takes messages while `reads` is set."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.reads.set()
        self.read: list[bytes] = []
        self.fails: Exception | None = None

    def peer(self) -> str:
        return "ipv4:10.0.0.1:1"

    async def write(self, data: bytes) -> None:
        await self.reads.wait()
        if self.fails:
            raise self.fails
        self.read.append(data)


class Stream:
    """A writer, and whether the work for its stream was ended."""

    def __init__(self, stall_seconds: float) -> None:
        self.client, self.departures = Client(), Departures()
        self.ended = asyncio.Event()
        self.writer = Writer(self.client, self.departures, stall_seconds, self._end)

    async def _end(self) -> None:
        self.ended.set()

    @property
    def unread(self) -> int:
        return self.departures.shares.bytes


@pytest.fixture(autouse=True)
def acme() -> None:
    context.begin(context.Call("req-1", "GenerateStream", Tenant("acme"), {}, Metrics()))


async def test_messages_come_in_their_order_and_count_only_until_they_are_read():
    stream = Stream(60)
    with closing(stream.writer):
        await stream.writer.write(b"a")
        await stream.writer.write(b"b")
        assert (stream.client.read, stream.unread) == ([b"a", b"b"], 0)
        stream.client.reads.clear()
        writing = asyncio.create_task(stream.writer.write(b"c" * 100))
        await asyncio.sleep(0)
        assert stream.unread >= 100
        stream.client.reads.set()
        await writing
    assert (stream.unread, stream.ended.is_set()) == (0, False)


async def test_the_work_for_a_client_that_reads_nothing_is_ended_and_the_call_later(until):
    stream = Stream(0.01)
    with closing(stream.writer):
        stream.client.reads.clear()
        writing = asyncio.create_task(stream.writer.write(b"a"))
        await until(stream.ended.is_set)
        assert not writing.done()
        assert stream.unread > 0, "gRPC has the message still"
        stream.client.reads.set()
        with pytest.raises(Unavailable, match=r"^the client read nothing for 0\.01 s$"):
            await writing
    assert stream.unread == 0


class Loop(asyncio.SelectorEventLoop):
    """Its time is the test's."""

    now = 0.0

    def time(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def _one_that_reads_slowly(loop: Loop) -> None:
    stream = Stream(10)
    with closing(stream.writer):
        for _ in range(4):
            stream.client.reads.clear()
            writing = asyncio.create_task(stream.writer.write(b"a"))
            await settle()
            loop.now += 9
            await settle()
            stream.client.reads.set()
            await writing
        stream.client.reads.clear()
        writing = asyncio.create_task(stream.writer.write(b"a"))
        await settle()
        loop.now += 9
        await settle()
        assert not stream.ended.is_set()
        loop.now += 1
        await settle()
        assert stream.ended.is_set()
        stream.client.reads.set()
        with pytest.raises(Unavailable):
            await writing


def test_a_client_that_reads_slowly_has_its_time_for_each_message():
    loop = Loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_one_that_reads_slowly(loop))


async def test_what_was_given_to_a_call_that_is_cancelled_counts_until_grpc_is_through():
    stream, unread = Stream(60), list[int]()
    stream.client.reads.clear()

    async def call() -> None:
        with closing(stream.writer):
            try:
                await stream.writer.write(b"a")
            finally:
                unread.append(stream.unread)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert unread > [0]
    assert stream.unread == 0


async def test_a_message_that_is_too_large_is_not_written():
    stream = Stream(60)
    with closing(stream.writer), pytest.raises(InvalidInput):
        await stream.writer.write(b"a" * (LARGEST + 1))
    assert (stream.client.read, stream.unread) == ([], 0)


async def test_a_failure_of_the_connection_is_passed_on():
    stream = Stream(60)
    stream.client.fails = ConnectionError()

    async def call() -> None:
        with closing(stream.writer):
            await stream.writer.write(b"a")

    with pytest.raises(ConnectionError):
        await asyncio.create_task(call())
