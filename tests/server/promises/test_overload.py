"""Overload: with ten times more calls than the engine can answer, those that are let in are answered in time, the
others are told at once when to come again, and the engine does as much as ever.

Calls come at their own times (Poisson, seeded), whatever becomes of those before them.
"""

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tuneserve.benchmarks.serving.load import open_loop
from tuneserve.server.config import ModelConfig
from tuneserve.v1 import generation_pb2
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import loopback

SLOTS = 4
STEP = 0.2
OVERLOAD = 10
SECONDS = 5.0
# Of the clocks; not of the promise.
SLACK_MS = 150
TRIES = 3

REQUEST = generation_pb2.GenerateRequest(
    model="chat",
    prompt=generation_pb2.Prompt(text="the film was"),
    sampling=generation_pb2.SamplingParams(max_tokens=2),
)
LIMITS = {
    "calls": {"max_queue": 20, "max_wait_seconds": 30.0},
    "wait": {"max_queue": 512, "max_wait_seconds": 1.0},
    "tokens": {"max_queue": 512, "max_queue_tokens": 100, "max_wait_seconds": 30.0},
}
REASONS = {"calls": "QUEUE_FULL", "wait": "QUEUE_WAIT", "tokens": "QUEUE_TOKENS"}


@pytest.fixture(params=LIMITS)
async def limited(request, serve_config, make_llama):
    """A server whose engine takes four at a time and a fifth of a second for each; and what limits its queue."""
    config = loopback(
        {"chat": ModelConfig(path=make_llama(), max_num_seqs=SLOTS, **LIMITS[request.param])}, drain_seconds=2
    )
    async with serve_config(config) as served:
        served.engines["chat"].delay = STEP
        yield served, request.param


def check_refusal(error: grpc.aio.AioRpcError, reason: str) -> None:
    """A refusal says why, and when to come again, for people, programs and gRPC's own retries."""
    retry, why = error_details_pb2.RetryInfo(), error_details_pb2.ErrorInfo()
    details = rpc_status.from_call(error).details
    assert details[0].Unpack(retry)
    assert details[1].Unpack(why)
    assert why.reason == reason, why.reason
    pushback = int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    assert pushback == retry.retry_delay.ToMilliseconds() > 0


async def test_ten_times_too_many(limited):
    served, limit = limited
    [model] = served.app.models
    deepest = 0

    async def call(_number: int) -> float | None:
        nonlocal deepest
        answer = GenerationServiceStub(served.channel).Generate(REQUEST)
        try:
            await answer
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                check_refusal(error, REASONS[limit])
            raise
        finally:
            deepest = max(deepest, model.admission.calls)
        return open_loop.queue_seconds(await answer.trailing_metadata())

    usual = await open_loop.usual(call)
    peak = await open_loop.closed_loop(call, 2 * SLOTS, 2.0, warmup=0.5)
    for _ in range(TRIES):
        memory = psutil.Process().memory_info().rss
        result = await open_loop.open_loop(call, OVERLOAD * peak, SECONDS, seed=3, usual_seconds=usual)
        grown = psutil.Process().memory_info().rss - memory
        print(limit, peak, deepest, grown, result.to_json())
        # A client that was late itself measured the machine, and not the server.
        if result.figures["reject_ms_p99"] < 50 and result.answered_per_s >= 0.9 * peak:
            break
    figures, most = result.figures, 1000 * LIMITS[limit]["max_wait_seconds"]
    # Of a machine that has other work all the time, and not of the promise.
    late = 2 * figures["lag_ms_p99"]
    assert result.errors.keys() - {open_loop.UNSENT} == {"RESOURCE_EXHAUSTED"}
    assert result.rejected == result.pushed_back > 0.8 * result.sent
    assert figures["reject_ms_p50"] < figures["e2el_ms_p50"] / 20
    assert figures["reject_ms_p99"] < 50 + late
    assert figures["wait_ms_p99"] < most + SLACK_MS + late
    assert result.answered_per_s >= 0.9 * peak
    assert result.recovery_seconds is not None
    assert result.recovery_seconds < 5
    assert deepest <= LIMITS[limit]["max_queue"]
    assert grown < 32 << 20
    assert (model.admission.calls, model.admission.running, model.admission.waiting_tokens) == (0, 0, 0)
