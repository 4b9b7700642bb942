"""The open loop against a server that turns away what it can't take, in the same event loop."""

import asyncio
import time

import grpc
import pytest

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
from tuneserve.benchmarks.serving.overload import classify
from tuneserve.benchmarks.serving.workers.grpc_client import open_channels

from ..conftest import SERVICE_SECONDS, OneAtATime


async def test_more_than_the_server_takes(one_at_a_time: tuple[OneAtATime, str]) -> None:
    servicer, target = one_at_a_time
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
