"""The open loop against a server that turns away what it can't take, in the same event loop."""

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest

from tuneserve.benchmarks.serving import overload as overload_module
from tuneserve.benchmarks.serving.load import open_loop as module
from tuneserve.benchmarks.serving.load.open_loop import (
    UNFINISHED,
    UNSENT,
    Call,
    closed_loop,
    open_loop,
    queue_seconds,
    usual,
)
from tuneserve.benchmarks.serving.overload import classify, overload
from tuneserve.benchmarks.serving.workers.grpc_client import open_channels
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import classification_pb2_grpc

SERVICE_SECONDS = 0.02


class Server(classification_pb2_grpc.ClassificationServiceServicer):
    """Answers one call at a time, and lets two more wait."""

    def __init__(self) -> None:
        self.inside = 0
        self.turn = asyncio.Lock()
        self.batches: list[int] = []

    async def Classify(self, request: pb.ClassifyRequest, context) -> pb.ClassifyResponse:
        if self.inside == 3:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("grpc-retry-pushback-ms", "100"),))
        self.batches.append(len(request.inputs))
        self.inside += 1
        try:
            async with self.turn:
                await asyncio.sleep(SERVICE_SECONDS)
        finally:
            self.inside -= 1
        context.set_trailing_metadata((("server-timing", "queue;dur=12.5, engine;dur=20"),))
        return pb.ClassifyResponse(results=[pb.Classification()] * len(request.inputs))


@pytest.fixture
async def served() -> AsyncIterator[tuple[Server, str]]:
    servicer = Server()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


async def test_more_than_the_server_takes(served: tuple[Server, str]) -> None:
    servicer, target = served
    async with open_channels(target, 4) as channels:
        call = classify(channels, "m", 2)
        result = await open_loop(call, rate=300, seconds=1.0, seed=7, usual_seconds=0.5)
    assert set(servicer.batches) == {2}
    # On a busy machine some may not have been sent.
    assert result.sent == result.answered + result.rejected == result.due - result.errors.get(UNSENT, 0)
    assert result.rejected == result.pushed_back == result.errors["RESOURCE_EXHAUSTED"] > 100
    # One call at a time, each of 20 ms or more.
    assert 0 < result.answered_per_s <= 1 / SERVICE_SECONDS * 1.1
    assert result.figures["wait_ms_p99"] == 12.5
    assert result.figures["e2el_ms_p50"] >= 1000 * SERVICE_SECONDS
    assert 0 < result.figures["reject_ms_p50"] <= result.figures["reject_ms_p99"]
    assert result.recovery_seconds is not None
    assert servicer.inside == 0
    flat = result.to_json()
    assert flat["sent"] == result.sent
    assert flat["lag_ms_p99"] == result.figures["lag_ms_p99"] >= 0


async def test_arrivals_are_a_poisson_process_of_the_seed() -> None:
    async def sent(seed: int) -> tuple[int, list[int]]:
        numbers: list[int] = []

        async def call(number: int) -> float | None:
            numbers.append(number)
            return None

        result = await open_loop(call, rate=400, seconds=0.5, seed=seed)
        assert result.errors == {}
        assert result.figures["wait_ms_p50"] is None
        assert result.recovery_seconds is None
        return result.sent, numbers

    first, numbers = await sent(1)
    assert numbers == list(range(first))
    assert (await sent(1))[0] == first
    assert len({(await sent(seed))[0] for seed in range(2, 8)}) > 1
    # Five standard deviations around 200.
    assert 130 < first < 270


async def test_no_call_waits_for_another() -> None:
    together = asyncio.Event()
    inside = 0

    async def call(number: int) -> float | None:
        nonlocal inside
        inside += 1
        if inside == 20:
            together.set()
        await together.wait()
        return None

    result = await open_loop(call, rate=200, seconds=0.5, seed=3)
    assert result.answered == result.sent >= 20


async def test_a_call_that_never_ends_is_counted_and_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)

    async def call(number: int) -> float | None:
        await asyncio.sleep(3600)
        return None

    before = asyncio.all_tasks()
    result = await open_loop(call, rate=100, seconds=0.1, seed=1)
    assert result.errors == {UNFINISHED: result.sent}
    assert asyncio.all_tasks() == before


async def test_times_count_from_when_a_call_was_due() -> None:
    """A client that is held up sends its calls late, and the callers whom they stand for wait from when they came."""
    held_up = False

    async def call(number: int) -> float | None:
        nonlocal held_up
        if not held_up:
            held_up = True
            time.sleep(0.3)  # noqa: ASYNC251 - the whole program: nothing is sent meanwhile
        if number % 2:
            metadata = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, metadata, metadata)
        return None

    result = await open_loop(call, rate=200, seconds=0.6, seed=1)
    # On a busy machine some may not have been sent.
    assert result.sent == result.answered + result.rejected == result.due - result.errors.get(UNSENT, 0)
    # Half of all calls came while it was held up, and waited for 150 ms on average; each took no time once sent.
    for name in ("e2el", "reject", "lag"):
        assert result.figures[f"{name}_ms_p99"] > 200, name


async def test_calls_that_could_not_be_sent_in_time_are_counted() -> None:
    async def call(number: int) -> float | None:
        time.sleep(0.05)  # noqa: ASYNC251 - the client is too slow for the rate
        return None

    result = await open_loop(call, rate=200, seconds=0.5, seed=1)
    assert result.sent < 20
    assert result.errors == {UNSENT: result.due - result.sent}
    assert result.due > 60
    assert result.answered == result.sent
    assert result.figures["failed_ms_p99"] > 100
    assert result.figures["lag_ms_p99"] > 100


async def test_a_bug_in_the_call_is_raised() -> None:
    async def call(number: int) -> float | None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await open_loop(call, rate=100, seconds=0.1, seed=1)


def refusing(times: int) -> Call:
    async def call(number: int) -> float | None:
        nonlocal times
        if (times := times - 1) >= 0:
            metadata = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata)
        return None

    return call


async def test_recovery_ends_with_an_answer_in_the_usual_time() -> None:
    result = await open_loop(refusing(3), rate=1e-9, seconds=0.01, seed=1, usual_seconds=1.0)
    assert result.sent == 0
    # Three refused probes, with a pause after each.
    assert result.recovery_seconds >= 3 * module._PAUSE_SECONDS


async def test_closed_loop_counts_answers_only() -> None:
    async def call(number: int) -> float | None:
        await asyncio.sleep(0.01)
        return None

    rate = await closed_loop(call, connections=5, seconds=0.3, warmup=0.1)
    assert 5 < rate <= 500
    assert await usual(call) >= 0.01
    assert await closed_loop(refusing(10**9), connections=5, seconds=0.2) == 0


def test_the_queue_s_share_of_server_timing() -> None:
    assert queue_seconds((("x", "queue;dur=1"), ("server-timing", "queue;dur=1.5, tokenize;dur=2, queue;dur=2"))) == (
        pytest.approx(0.0035)
    )
    assert queue_seconds((("server-timing", "engine;dur=3"),)) is None
    assert queue_seconds(None) is None


async def test_overload_measures_the_peak_as_often_and_as_long(
    served: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[tuple[str, float]] = []
    for name, place in (("closed_loop", 2), ("open_loop", 2)):
        measure = getattr(overload_module, name)

        async def noted(*given: object, _name=name, _place=place, _measure=measure, **more: object) -> object:
            parts.append((_name, given[_place]))
            return await _measure(*given, **more)

        monkeypatch.setattr(overload_module, name, noted)
    _, target = served
    # Only answers of the second half count: a machine that stops for that long would leave none.
    measured = await overload(target, "m", 0, batch=2, times=5, seconds=2.0, rounds=3)
    # The warm-up, and then in turns.
    order = ["closed_loop", "open_loop", "open_loop", "closed_loop", "closed_loop", "open_loop"]
    assert [name for name, _ in parts[2:]] == order
    assert {seconds for _, seconds in parts[1:]} == {2.0}
    assert len(measured.rounds) == 3
    assert len({one.result.rate for one in measured.rounds}) == 1
    assert len({one.result.seed for one in measured.rounds}) == 3
    for one in measured.rounds:
        assert 0 < one.peak <= 1 / SERVICE_SECONDS * 1.1
        assert one.result.rejected > 0
    assert len(measured.to_json()["rounds"]) == 3
    peaks = sorted(one.peak for one in measured.rounds)
    assert measured.medians()["peak_per_s"] == pytest.approx(peaks[1], abs=0.01)
