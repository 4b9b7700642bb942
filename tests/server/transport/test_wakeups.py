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


def test_all_bytes_but_one_are_taken_before_the_events_are_handled():
    left = []
    reading, writing = socket.socketpair()
    with reading, writing:
        reading.setblocking(False)

        class Queue:
            def _handle_events(self) -> None:
                left.append(len(reading.recv(1 << 16)))

        async def run() -> None:
            asyncio.get_running_loop().add_reader(reading, Queue()._handle_events)
            writing.send(b"1" * 200)
            await asyncio.sleep(0.1)
            writing.send(b"1")
            await asyncio.sleep(0.1)

        on_a_loop_of_ours(run())
    assert left == [1, 1]


def test_it_is_grpc_s_own_handler_that_is_known(monkeypatch):
    """When this fails, gRPC has another way to wake the loop up: look whether this module is needed."""
    found = []
    monkeypatch.setattr(
        wakeups, "_all_but_one", lambda waked, room, callback, *arguments: (found.append(1), callback())
    )

    async def run() -> None:
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/a/b")(b"", timeout=2)

    on_a_loop_of_ours(run())
    assert found
