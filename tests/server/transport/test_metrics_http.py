"""The metrics' port: one page, whoever else holds connections to it."""

import asyncio
import contextlib
import gzip
import socket
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tuneserve.server.transport import connections, metrics_http
from tuneserve.server.transport.metrics_http import MetricsServer

GET = b"GET /metrics?x=1 HTTP/1.1\r\nHost: localhost\r\n"
PAGE = b"tuneserve_up 1\n"


def page(environ, start_response):
    """Echoes what it was asked."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/broken":
        raise ValueError("secret")
    if "gzip" in environ["HTTP_ACCEPT_ENCODING"]:
        return [gzip.compress(PAGE)]
    return [PAGE, f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ['QUERY_STRING']}".encode()]


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, int]]:
    bound = connections.sockets("127.0.0.1:0", "metrics_listen")
    server = MetricsServer(page, bound)
    await server.start()
    try:
        yield bound[0].getsockname()
    finally:
        server.close()


async def ask(address: tuple[str, int], request: bytes) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


async def test_a_page():
    async with serving() as address:
        head, body = await ask(address, GET + b"\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ")
        assert body == PAGE + b"GET /metrics x=1"
        _, body = await ask(address, GET + b"Accept-Encoding: deflate, gzip\r\n\r\n")
        assert gzip.decompress(body) == PAGE


async def test_what_is_wrong(caplog):
    async with serving() as address:
        assert (await ask(address, b"\x16\x03\x01\r\n\r\n"))[0].startswith(b"HTTP/1.1 400 ")
        assert (await ask(address, b"GET /broken HTTP/1.1\r\n\r\n"))[0].startswith(b"HTTP/1.1 500 ")
        assert (await ask(address, GET + b"x" * 100_000))[0] == b""
    assert "the metrics' page failed: ValueError at " in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("begun", [b"", GET], ids=["silent", "half a request"])
async def test_connections_are_few_and_short(begun, monkeypatch, caplog):
    """And none of them is a thread, or keeps the page from anybody."""
    monkeypatch.setattr(metrics_http, "_SECONDS", 2.0)
    async with serving() as address:
        threads = threading.active_count()
        held = []
        for number in range(200):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(begun)
            held.append((reader, writer))
            if number % 50 == 0:
                assert (await ask(address, GET + b"\r\n"))[1].startswith(PAGE)
        assert threading.active_count() <= threads + 1
        for reader, writer in held:
            with contextlib.suppress(ConnectionError):
                assert not await asyncio.wait_for(reader.read(), 20)
            writer.close()
        assert (await ask(address, GET + b"\r\n"))[1].startswith(PAGE)
    assert not caplog.text


async def test_connections_are_few_however_many_come_at_once():
    async with serving() as address:
        # The server finds all of them waiting.
        clients = [socket.create_connection(address) for _ in range(90)]
        for client in clients:
            client.setblocking(False)
        await asyncio.sleep(0.3)

        def is_open(client: socket.socket) -> bool:
            try:
                return bool(client.recv(1))
            except BlockingIOError:
                return True
            except ConnectionError:
                return False

        assert [is_open(client) for client in clients].count(True) == metrics_http._MOST
        for client in clients:
            client.close()


async def test_a_page_that_nobody_reads_is_given_up(monkeypatch):
    monkeypatch.setattr(metrics_http, "_SECONDS", 0.5)
    monkeypatch.setattr(f"{__name__}.PAGE", bytes(64 << 20))
    before = len(asyncio.all_tasks())
    async with serving() as address:
        _, writer = await asyncio.open_connection(*address, limit=1)
        writer.write(GET + b"\r\n")
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if len(asyncio.all_tasks()) > before:
                break
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if len(asyncio.all_tasks()) == before:
                break
        assert len(asyncio.all_tasks()) == before
        writer.transport.abort()


async def test_a_client_that_is_gone_before_its_page_is_made(caplog, until):
    asked, left = threading.Event(), threading.Event()

    def slowly(environ, start_response):
        asked.set()
        left.wait(20)
        return page(environ, start_response)

    bound = connections.sockets("127.0.0.1:0", "metrics_listen")
    server = MetricsServer(slowly, bound)
    await server.start()
    with contextlib.closing(server):
        _, writer = await asyncio.open_connection(*bound[0].getsockname())
        writer.write(GET + b"\r\n")
        await asyncio.to_thread(asked.wait, 20)
        # With a reset: to the server, an end of what it reads is no end of the connection.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await asyncio.sleep(0.05)
        left.set()
        await until(lambda: not server._serving)
    await asyncio.sleep(0)
    assert not caplog.records
