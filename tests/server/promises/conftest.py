"""What the attacks share: a server on fake engines, and the proof that it is as it was before."""

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneserve.server.config import FeedbackConfig, IndexConfig, ModelConfig, MonitorConfig
from tuneserve.server.text import redaction
from tuneserve.v1 import classification_pb2, generation_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..api.test_chat import TOOLS_TEMPLATE
from ..conftest import NER_LABELS, loopback
from .loop_probe import Probe, probing

CLASSIFY = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")]
)
GENERATE = generation_pb2.GenerateRequest(
    model="chat",
    prompt=generation_pb2.Prompt(text="the film was"),
    sampling=generation_pb2.SamplingParams(max_tokens=2),
)
# The longest that a turn of the event loop may take, in seconds.
_LONGEST_TURN = 0.1
LENGTH = 512  # tokens that the models of `large` read; four times as many if they write
_numbers = itertools.count()
# Sockets of ours are closed at once, but the server hears of it a little later.
_CALM_SECONDS = 10.0


@dataclass(frozen=True)
class State:
    """What an attack may leave behind. Server and clients are in this process: both count."""

    tasks: int
    fds: int
    held: int  # sequences, calls and tokens in the engines and their queues

    @classmethod
    def of(cls, served) -> "State":
        models = list(served.app.models)
        inside = [m.admission.running + m.admission.calls + m.admission.waiting_tokens for m in models]
        # A client's writer of requests outlives its call until there is one to write.
        tasks = [task for task in asyncio.all_tasks() if "_consume_request_iterator" not in str(task.get_coro())]
        return cls(
            len(tasks),
            psutil.Process().num_fds(),
            sum(inside) + sum(engine.running for engine in served.engines.values()),
        )


async def _alive(served) -> None:
    response = await health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert response.status == health_pb2.HealthCheckResponse.SERVING
    assert (await ClassificationServiceStub(served.channel).Classify(CLASSIFY, timeout=10)).results
    request = generation_pb2.GenerateRequest()
    request.CopyFrom(GENERATE)
    # Another each time, so that the process that checks them runs.
    request.sampling.structured_output.regex = f"{next(_numbers)}"
    assert (await GenerationServiceStub(served.channel).Generate(request, timeout=60)).completions


@asynccontextmanager
async def _unharmed(served) -> AsyncIterator[None]:
    await _alive(served)
    before, there = State.of(served), asyncio.all_tasks()
    yield
    await _alive(served)
    for _ in range(round(_CALM_SECONDS / 0.02)):
        after = State.of(served)
        if after.tasks <= before.tasks and after.fds <= before.fds and not after.held:
            return
        await asyncio.sleep(0.02)
    new = "\n".join(map(str, asyncio.all_tasks() - there))
    raise AssertionError(f"before: {before}, {_CALM_SECONDS:g} s after: {after}; tasks that are new:\n{new}")


@pytest.fixture
def unharmed() -> Callable:
    """`async with unharmed(served)`: answers before and after, and neither tasks, files nor engine slots are left."""
    return _unharmed


@asynccontextmanager
async def _unheld() -> AsyncIterator[Probe]:
    async with probing() as probe:
        yield probe
    assert probe.longest <= _LONGEST_TURN, f"the event loop was held for {probe.longest * 1000:.0f} ms"


@pytest.fixture
def soon() -> Callable:
    """`await soon(call)` fails if a call, a function that makes it, holds the event loop for too long each time it is
    made. What depends on how memory happens to lie takes much longer at times on a busy machine.
    """

    async def check(call: Callable, what: str = "the call") -> object:
        turns = []
        while len(turns) < 5:
            async with probing() as probe:
                answer = await call()
            turns.append(probe.longest)
            if probe.longest <= _LONGEST_TURN:
                return answer
        raise AssertionError(f"the event loop was held for {min(turns) * 1000:.0f} ms by {what}")

    return check


@pytest.fixture
def unheld() -> Callable:
    """`async with unheld():` fails if the event loop was held for longer than is promised."""
    return _unheld


@pytest.fixture(scope="session")
async def large(serve_config, make_bert, make_llama, tmp_path_factory) -> AsyncIterator:
    """A server whose models read as much as real ones."""
    root = tmp_path_factory.mktemp("root")
    (root / "empty").mkdir()
    config = loopback(
        {
            "sentiment": make_bert(max_position_embeddings=LENGTH),
            "topics": make_bert(
                labels=[f"topic {number}" for number in range(1000)],
                max_position_embeddings=LENGTH,
            ),
            "ner": make_bert("ForTokenClassification", NER_LABELS, max_position_embeddings=LENGTH),
            "vectors": make_bert("Model", [], max_position_embeddings=LENGTH),
            "chat": ModelConfig(path=make_llama(max_position_embeddings=4 * LENGTH), max_adapters=2),
            "tools": make_llama(TOOLS_TEMPLATE, max_position_embeddings=4 * LENGTH),
            "masked": ModelConfig(
                path=make_llama(TOOLS_TEMPLATE, max_position_embeddings=4 * LENGTH), redact=list(redaction.KINDS)
            ),
            "masked-topics": ModelConfig(
                path=make_bert(labels=["a", "b"], max_position_embeddings=LENGTH),
                redact=list(redaction.KINDS),
            ),
        },
        monitors={
            "news": MonitorConfig(topic="topics", sentiment="sentiment", examples=3),
            "masked": MonitorConfig(topic="masked-topics", sentiment="sentiment", examples=3),
        },
        models_root=root,
        indexes={"docs": IndexConfig(path=root / "docs", embedding="vectors")},
        feedback=FeedbackConfig(path=root / "feedback"),
    )
    async with serve_config(config) as served:
        yield served


def _send(address: str, method: str, messages: Sequence[bytes], seconds: float) -> tuple[grpc.StatusCode, str]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options) as channel:
        call = channel.stream_stream(method)(iter(messages), timeout=seconds)
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        return call.code(), call.details()


@pytest.fixture
def send() -> Callable:
    """`await send(address, method, [bytes])` makes a call of any kind in another thread, and returns its status."""

    async def run(address: str, method: str, messages: Sequence[bytes], seconds: float = 120.0):
        return await asyncio.to_thread(_send, address, method, messages, seconds)

    return run


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
TABLE_SETTING, WINDOW_SETTING = 1, 4


def _frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _block(*pairs: tuple[str, str]) -> bytes:
    """Short headers, as HPACK literals that are kept in no table."""
    return b"".join(b"\0" + b"".join(bytes([len(one)]) + one.encode() for one in pair) for pair in pairs)


class RawClient:
    """A client below gRPC: it keeps to HTTP/2's windows and sends what it likes. `answers` are the bytes of the headers
    and trailers that came, by stream; `reset` are the streams that the server ended.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._windows: dict[int, int] = {0: 65_535}
        self._initial = 65_535
        self._news = asyncio.Event()
        self.settings: dict[int, int] = {}
        self.answers: dict[int, bytes] = {}
        self.reset: set[int] = set()
        self.closed = False
        # Without a table of headers, each answer has all of its own, as they are.
        self._write(PREFACE + _frame(SETTINGS, payload=struct.pack(">HI", TABLE_SETTING, 0)))
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, address: str, own_port: int = 0, own_host: str = "127.0.0.1") -> "RawClient":
        host, port = address.rsplit(":", 1)
        client = cls(*await asyncio.open_connection(host, int(port), local_addr=(own_host, own_port)))
        await client.until(lambda: client.settings or client.closed)
        return client

    @property
    def port(self) -> int:
        """Its own."""
        number: int = self._writer.get_extra_info("sockname")[1]
        return number

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        await asyncio.wait((self._reading,))

    def vanish(self) -> None:
        """Answers nothing any more, and does not hang up either."""
        self._reading.cancel()

    async def until(self, condition: Callable[[], object], seconds: float = 20.0) -> bool:
        """Waits until something holds; returns whether it does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        return bool(condition())

    def open(self, stream: int, path: str, *more: tuple[str, str], end: bool = False) -> None:
        """Begins a call."""
        headers = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        )
        self._windows[stream] = self._initial
        self._write(_frame(HEADERS, 5 if end else 4, stream, _block(*headers, *more)))

    def cancel(self, stream: int) -> None:
        self._write(_frame(RST_STREAM, 0, stream, b"\0\0\0\x08"))

    async def drain(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def send(self, stream: int, message: bytes, *, length: int | None = None, compressed: bool = False) -> int:
        """Sends a message, or of one of another length what there is of it. Returns how many bytes the server took
        before it ended the stream or kept its window shut for a second.
        """
        data, sent = struct.pack(">?I", compressed, len(message) if length is None else length) + message, 0

        def room() -> int:
            return min(16_384, self._windows[0], self._windows[stream], len(data) - sent)

        while sent < len(data):
            if not await self.until(lambda: room() > 0 or stream in self.reset or self.closed, 1.0):
                break
            if stream in self.reset or self.closed:
                break
            size = room()
            self._write(_frame(DATA, 0, stream, data[sent : sent + size]))
            sent += size
            self._windows[0] -= size
            self._windows[stream] -= size
            await self.drain()
        return sent

    def _write(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await self._reader.readexactly(9)
                kind, flags, stream = struct.unpack(">BBI", head[3:])
                self._take(kind, flags, stream, await self._reader.readexactly(int.from_bytes(head[:3])))
                self._news.set()
        self.closed = True
        self._news.set()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & 1:
            self.settings |= dict(struct.iter_unpack(">HI", payload))
            self._initial = self.settings.get(WINDOW_SETTING, self._initial)
            self._write(_frame(SETTINGS, 1))
        elif kind == PING and not flags & 1:
            self._write(_frame(PING, 1, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._windows[stream] = self._windows.get(stream, self._initial) + int.from_bytes(payload)
        elif kind == HEADERS:
            self.answers[stream] = self.answers.get(stream, b"") + payload
            if flags & 1:
                self.reset.add(stream)
        elif kind == RST_STREAM:
            self.reset.add(stream)


@pytest.fixture
async def raw() -> AsyncIterator[Callable]:
    """`await raw(address)` is a connection without gRPC; closed at the test's end."""
    async with contextlib.AsyncExitStack() as stack:

        async def connect(address: str, own_port: int = 0, own_host: str = "127.0.0.1") -> RawClient:
            client = await RawClient.connect(address, own_port, own_host)
            stack.push_async_callback(client.close)
            return client

        yield connect
