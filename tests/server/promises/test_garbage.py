"""Bad bytes below gRPC: what is no HTTP/2, or HTTP/2 that no client sends. The server goes on, and keeps nothing of it.

Each attack is a connection: what is sent on it, in pieces. `make fuzz` makes more of them.
"""

import asyncio
import contextlib
import logging
import os
import random
import struct
import urllib.request
from collections.abc import Callable

import psutil
import pytest

from tuneserve.v1 import classification_pb2

SHORT = 1300
ROUNDS = max(3, int(os.environ.get("TUNESERVE_FUZZ_EXAMPLES", SHORT)) // 400)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 1, 4
CLASSIFY = "/tuneserve.v1.ClassificationService/Classify"
GOOD = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")]
).SerializeToString()

Attack = Callable[[random.Random], list[bytes]]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(*pairs: tuple[str, str]) -> bytes:
    """Headers as HPACK literals that are kept in no table."""

    def text(value: str) -> bytes:
        data, length = value.encode("latin-1"), len(value)
        if length < 127:
            return bytes([length]) + data
        rest, head = length - 127, b"\x7f"
        while rest >= 128:
            head, rest = head + bytes([rest % 128 + 128]), rest // 128
        return head + bytes([rest]) + data

    return b"".join(b"\0" + text(name) + text(value) for name, value in pairs)


def opened(path: str = CLASSIFY, content_type: str = "application/grpc", *more: tuple[str, str]) -> bytes:
    return block(
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", content_type),
        ("te", "trailers"),
        *more,
    )


def call(stream: int = 1, headers: bytes | None = None, body: bytes | None = None, end: bool = True) -> bytes:
    message = struct.pack(">BI", 0, len(GOOD)) + GOOD if body is None else body
    start = frame(HEADERS, END_HEADERS, stream, opened() if headers is None else headers)
    return start + frame(DATA, END_STREAM if end else 0, stream, message)


HELLO = PREFACE + frame(SETTINGS)


def any_frame(rng: random.Random) -> bytes:
    length = rng.choice([0, 1, 4, 5, 8, 9, 100, 17_000])
    return frame(
        rng.choice([*range(10), 200]), rng.randrange(256), rng.choice([0, 1, 2, 3, 1 << 31]), rng.randbytes(length)
    )


def lying_frame(rng: random.Random) -> bytes:
    data = bytearray(call() + frame(PING, 0, 0, b"12345678") + frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"))
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def large_headers(size: int) -> bytes:
    headers = opened(CLASSIFY, "application/grpc", *((f"x-{index}", "y" * 1000) for index in range(size // 1000)))
    pieces = [headers[at : at + 16_000] for at in range(0, len(headers), 16_000)]
    frames = [frame(HEADERS if not at else CONTINUATION, 0, 1, piece) for at, piece in enumerate(pieces)]
    return b"".join(frames) + frame(CONTINUATION, END_HEADERS, 1)


ATTACKS: dict[str, Attack] = {
    "noise": lambda rng: [rng.randbytes(rng.randint(1, 5000))],
    "http/1.1": lambda _: [b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{}"],
    "tls": lambda rng: [b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + rng.randbytes(500)],
    "half a preface": lambda rng: [PREFACE[: rng.randint(1, 23)]],
    "preface and noise": lambda rng: [PREFACE, rng.randbytes(3000)],
    "any frames": lambda rng: [HELLO, *(any_frame(rng) for _ in range(20))],
    "wrong bits": lambda rng: [HELLO, lying_frame(rng)],
    "half a frame": lambda rng: [HELLO, call()[: rng.randint(1, len(call()) - 1)]],
    "large headers": lambda rng: [HELLO, large_headers(rng.choice([9_000, 20_000, 1_000_000]))],
    "endless headers": lambda _: [HELLO, frame(HEADERS, 0, 1, opened()), frame(CONTINUATION, 0, 1) * 3000],
    "broken compression": lambda rng: [HELLO, call(headers=b"\x7f\xff\xff\xff\xff\xff" + rng.randbytes(50))],
    "table size": lambda _: [HELLO, call(headers=b"\x3f\xe1\xff\xff\xff\x0f" + opened())],
    "another content type": lambda rng: [HELLO, call(headers=opened(CLASSIFY, rng.choice(["text/html", "", "grpc"])))],
    "another path": lambda rng: [
        HELLO,
        call(headers=opened(rng.choice(["", "x", "/", "//", "/a", "/tuneserve.", "/" * 999]))),
    ],
    "no pseudo headers": lambda _: [HELLO, call(headers=block(("te", "trailers")))],
    "strange timeout": lambda rng: [
        HELLO,
        call(
            headers=opened(
                CLASSIFY, "application/grpc", ("grpc-timeout", rng.choice(["", "0n", "-1S", "9" * 30 + "H"]))
            )
        ),
    ],
    "bad binary header": lambda _: [HELLO, call(headers=opened(CLASSIFY, "application/grpc", ("x-bin", "%%%")))],
    "message too long": lambda _: [HELLO, call(body=b"\0\xff\xff\xff\xff" + b"x" * 16_000, end=False)],
    "message cut off": lambda _: [HELLO, call(body=struct.pack(">BI", 0, 500) + b"x" * 20)],
    "compressed by nothing": lambda rng: [HELLO, call(body=struct.pack(">BI", rng.choice([1, 255]), 5) + b"12345")],
    "several messages": lambda _: [HELLO, call(body=(struct.pack(">BI", 0, len(GOOD)) + GOOD) * 50)],
    "no message": lambda _: [HELLO, call(body=b"")],
    "open and close": lambda _: [
        HELLO,
        *(call(stream) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08") for stream in range(1, 401, 2)),
    ],
    "open and leave": lambda _: [HELLO, *(call(stream, end=False) for stream in range(1, 101, 2))],
    "streams twice": lambda _: [HELLO, call(1) + call(1) + call(2)],
    "pings": lambda rng: [HELLO, b"".join(frame(PING, 0, 0, rng.randbytes(8)) for _ in range(2000))],
    "settings": lambda rng: [HELLO, b"".join(frame(SETTINGS, 0, 0, rng.randbytes(6)) for _ in range(500))],
    "windows": lambda rng: [HELLO, call(), frame(WINDOW_UPDATE, 0, rng.choice([0, 1]), b"\x7f\xff\xff\xff") * 3],
    "goodbye": lambda _: [HELLO, frame(GOAWAY, 0, 0, b"\0" * 8), call()],
    "byte by byte": lambda _: [bytes([one]) for one in HELLO + call()],
}


async def attack(address: str, pieces: list[bytes], rng: random.Random) -> None:
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    # The server may hang up on us at any time.
    with contextlib.suppress(ConnectionError, TimeoutError, RuntimeError):
        for piece in pieces:
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), 1)
            if len(piece) == 1:
                await asyncio.sleep(0.001)
        if rng.random() < 0.8:
            await asyncio.wait_for(reader.read(1 << 16), 0.05)
    if rng.random() < 0.5:
        writer.transport.abort()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def attacks(address: str, name: str, rounds: int) -> None:
    """In a thread, since only the server's loop is timed."""

    async def all_of_them() -> None:
        rng = random.Random(name)
        for _ in range(rounds):
            await asyncio.gather(*(attack(address, ATTACKS[name](rng), rng) for _ in range(5)))

    await asyncio.to_thread(asyncio.run, all_of_them())


@pytest.mark.parametrize("name", ATTACKS)
async def test_garbage_on_the_wire(served, unharmed, soon, caplog, name):
    async with unharmed(served):
        await soon(lambda: attacks(served.app.address, name, ROUNDS), name)
    # gRPC's own words about a path that is no text are no error of ours.
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR and record.name[:5] != "grpc."]
    assert not errors


async def test_a_header_that_is_no_text_is_not_logged(served, caplog):
    """It may be a key."""
    caplog.set_level(logging.DEBUG)
    for name, value in (("authorization", "Bearer cAnArY\xff"), ("x-cAnArY\xff", "1"), ("x-request-id", "cAnArY\xff")):
        headers = opened(CLASSIFY, "application/grpc", (name.lower(), value))
        await attack(served.app.address, [HELLO, call(headers=headers)], random.Random(0))
    for path in ("/tuneserve.v1.ClassificationService/cAnArY\xff", "/cAnArY"):
        await attack(served.app.address, [HELLO, call(headers=opened(path))], random.Random(0))
    await asyncio.sleep(0.1)
    written = [f"{record.getMessage()} {record.exc_info}" for record in caplog.records]
    assert not [line for line in written if "canary" in line.lower()]


async def test_garbage_on_the_metrics_port(served, unharmed, soon):
    def page() -> bytes:
        with urllib.request.urlopen(f"http://{served.app.metrics_address}/metrics", timeout=10) as response:
            return response.read()

    threads = psutil.Process().num_threads()
    async with unharmed(served):
        for name in ("noise", "http/1.1", "tls", "half a preface", "any frames", "large headers"):
            await soon(lambda name=name: attacks(served.app.metrics_address, name, 1), name)
        assert b"tuneserve_queue_depth" in await asyncio.to_thread(page)
    for _ in range(200):
        if psutil.Process().num_threads() <= threads + 2:
            break
        await asyncio.sleep(0.01)
    assert psutil.Process().num_threads() <= threads + 2
