"""One text may be as large as a call: its work is done in pieces, too, between which others have their turns."""

import asyncio
import contextlib
import threading
import time

import grpc
import pytest

from tuneserve.server import turns
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import common_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

from ..conftest import NER_LABELS, loopback

LENGTH = 512
# Of 330,000 tokens, in nearly a thousand windows.
LONG = "angela merkel née in hamburg ! " * 55_000
SHORT = "angela merkel née in hamburg ! " * 60
# The longest that a piece of work may take, in seconds of its thread's CPU time.
PIECE = 0.1


@pytest.fixture
async def server(serve_config, make_bert):
    path = make_bert("ForTokenClassification", NER_LABELS, max_position_embeddings=LENGTH)
    config = loopback({"ner": path})
    async with serve_config(config) as served:
        yield served


class Work:
    """What threads do: the CPU time of each piece of work by its name, as they end, and how many run now."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, float]] = []
        self.running = 0

    def seconds(self, since: int = 0) -> float:
        return sum(seconds for _, seconds in self.pieces[since:])

    def is_at_spans(self) -> bool:
        """Whether texts were tokenized, and what is done now comes after that."""
        return self.running > 0 and any(name == "_encode" for name, _ in self.pieces)


@pytest.fixture
def work(monkeypatch, server) -> Work:
    found, run, lock = Work(), turns.Threads.run, threading.Lock()

    async def measured(self, work, *arguments):
        def piece(*given):
            with lock:
                found.running += 1
            began = time.thread_time()
            try:
                return work(*given)
            finally:
                with lock:
                    found.pieces.append((work.__name__, time.thread_time() - began))
                    found.running -= 1

        return await run(self, piece, *arguments)

    monkeypatch.setattr(turns.Threads, "run", measured)
    return found


@pytest.fixture
async def channels(server):
    """Each is another caller's, for answers of any size."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        channels = [grpc.aio.insecure_channel(server.app.address, options) for _ in range(3)]
        for channel in channels:
            await stack.enter_async_context(channel)
        yield channels


def find(channel, text: str, aggregation: str = "SIMPLE"):
    request = pb.ClassifyTokensRequest(
        model="ner",
        texts=[text],
        truncation=common_pb2.TRUNCATION_WINDOWS,
        aggregation=f"AGGREGATION_{aggregation}",
        offset_unit=common_pb2.OFFSET_UNIT_UTF16,
    )
    return ClassificationServiceStub(channel).ClassifyTokens(request)


@pytest.mark.parametrize("aggregation", ["SIMPLE", "AVERAGE", "MAX"])
async def test_its_spans_are_found_in_pieces(channels, work, aggregation):
    [result] = (await find(channels[0], LONG, aggregation)).results
    assert result.token_count > 300_000
    assert len(result.spans) > 100_000
    longest = max(seconds for name, seconds in work.pieces if name != "_encode")
    assert longest < PIECE, f"{longest * 1000:.0f} ms"


async def test_a_neighbours_text_is_tokenized_beside_long_ones(channels, server, monkeypatch, until):
    """The tokenizer takes half a second for one of these, and can't be interrupted; here as long as the test."""
    [model] = server.app.models
    held, goes_on = [], threading.Event()
    whole = model.tokenizer._whole

    class Slow:
        def __getattr__(self, name):
            return getattr(whole, name)

        def encode_batch(self, texts, **options):
            if max(map(len, texts)) > 1_000_000:
                held.append(len(texts))
                goes_on.wait()
            return whole.encode_batch(texts, **options)

    monkeypatch.setattr(model.tokenizer, "_whole", Slow())
    large = [asyncio.ensure_future(find(channel, LONG)) for channel in channels[:2]]
    try:
        await until(lambda: held)
        # The other one comes there, too, if it can.
        await asyncio.sleep(1)
        for _ in range(10):
            assert (await asyncio.wait_for(find(channels[2], SHORT), 30)).results[0].spans
        assert not any(call.done() for call in large)
    finally:
        goes_on.set()
    assert [len((await call).results) for call in large] == [1, 1]


async def test_a_neighbour_does_not_wait_for_the_spans_of_long_texts(channels, work, until):
    large = [asyncio.ensure_future(find(channel, LONG)) for channel in channels[:2]]
    await until(lambda: sum(name == "_encode" for name, _ in work.pieces) == 2 and work.running)
    before = len(work.pieces)
    assert (await find(channels[2], SHORT)).results[0].spans
    assert work.seconds(before) < 4 * PIECE, work.pieces[before:]
    await asyncio.gather(*large)


async def test_a_call_that_is_cancelled_finds_no_more_spans(channels, server, work, until):
    call = find(channels[0], LONG)
    await until(work.is_at_spans)
    before = len(work.pieces)
    call.cancel()
    [model] = server.app.models
    await until(lambda: not model.admission.calls and not len(server.app._running))
    await until(lambda: not work.running)
    assert work.seconds(before) < PIECE, work.pieces[before:]
