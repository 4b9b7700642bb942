"""gRPC's socket is emptied, so that the thread behind it never waits for the event loop."""

import asyncio
import socket
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tuneserve.server.transport import wakeups


def on_a_loop_of_ours(work: Coroutine[Any, Any, None]) -> None:
    """In a thread: a loop that ends takes the thread's own with it, and other tests have theirs here."""

    def run() -> None:
        with asyncio.Runner(loop_factory=wakeups.Loop) as runner:
            runner.run(work)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result(30)


class Queue:
    """What gRPC has: events in a queue, and a byte for each in a socket."""

    def __init__(self, reading: socket.socket, writing: socket.socket) -> None:
        self._reading, self._writing = reading, writing
        reading.setblocking(False)
        self.events = list[int]()
        self.handled = list[int]()
        self.left = list[int]()

    def put(self, event: int) -> None:
        self.events.append(event)
        self._writing.send(b"1")

    def _handle_events(self) -> None:
        self.left.append(len(self._reading.recv(1 << 16)))
        while self.events:
            if (event := self.events.pop(0)) < 0:
                raise RuntimeError("Event loop is closed")
            self.handled.append(event)


def test_all_bytes_but_one_are_taken_before_the_events_are_handled():
    reading, writing = socket.socketpair()
    with reading, writing:
        queue = Queue(reading, writing)

        async def run() -> None:
            asyncio.get_running_loop().add_reader(reading, queue._handle_events)
            for event in range(200):
                queue.put(event)
            await asyncio.sleep(0.1)
            queue.put(200)
            await asyncio.sleep(0.1)

        on_a_loop_of_ours(run())
    assert queue.left == [1, 1]
    assert queue.handled == list(range(201))


def test_an_event_is_not_forgotten_though_another_loop_took_its_byte():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        queue = Queue(ours, theirs)

        class Shared:
            def recv_into(self, room: bytearray, size: int = 0, flags: int = 0) -> int:
                if flags:
                    return 2  # which the other loop reads then, and it handles what is in the queue
                queue.put(3)
                return ours.recv_into(room, size)

        wakeups._all_but_one(Shared(), theirs, bytearray(8), queue._handle_events)
        assert not queue.handled
        queue._handle_events()
    assert queue.handled == [3]


def test_events_after_one_of_a_loop_that_is_closed_are_handled():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        queue = Queue(ours, theirs)

        async def run() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: failed.append(str(context["exception"])))
            loop.add_reader(ours, queue._handle_events)
            for event in (1, -1, 2, -1, 3):
                queue.put(event)
            await asyncio.sleep(0.1)

        failed = list[str]()
        on_a_loop_of_ours(run())
    assert queue.handled == [1, 2, 3]
    assert failed == ["Event loop is closed"] * 2


def test_it_is_grpc_s_own_handler_that_is_known(monkeypatch):
    """When this fails, gRPC has another way to wake the loop up: look whether this module is needed."""
    found = []
    monkeypatch.setattr(
        wakeups, "_all_but_one", lambda waked, other, room, callback, *arguments: (found.append(1), callback())
    )

    async def run() -> None:
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/a/b")(b"", timeout=2)

    on_a_loop_of_ours(run())
    assert found
