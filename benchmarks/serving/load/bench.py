"""Load on a running server, in a closed loop: N connections, each sending its next call when the last one has ended.

The regime. Each connection is a channel of its own with one call at a time, so there are never more than N calls in
the server: when the server slows down, so does the load. So latency hides the queueing that callers arriving
independently would see, and throughput is the most that N connections can reach. This program does not measure an open
loop, with calls at a given rate.

The first seconds are a warm-up and are not counted. Then, for a fixed time, calls that end and tokens that arrive are
counted. Calls still running at the end are cancelled. After an error a connection pauses for 50 ms, so that a refusing
server is not called in a tight loop. Classification: `batch` texts per call. Generation: one prompt per call, greedy,
and exactly `max_tokens` tokens per answer, end token or not. No input is sent twice (calls.py).

Figures have the usual names. TTFT: from sending to the first message with a token. ITL: between one message of an
answer and the next, as in `vllm bench serve`; `tokens_per_message` is the mean number of tokens of a message, since a
server that joins tokens has fewer and longer gaps. TPOT: from the first message to the last, per token after those of
the first message. E2EL: the whole call. p50, p90 and p99 in milliseconds, of calls that ended in the measured time.

It calls the server over gRPC only, and gets the task from ModelService.GetModel.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc

from tuneserve.benchmarks.serving.load.calls import Call, Settings, calls_of
from tuneserve.benchmarks.serving.load.tally import Tally, milliseconds
from tuneserve.call.channel import failure
from tuneserve.checkpoint import TASK_NAMES
from tuneserve.errors import StepFailed, UserError
from tuneserve.machine.tiers import measured_on
from tuneserve.v1 import checkpoint_pb2 as checkpoint
from tuneserve.v1 import model_pb2 as models
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

CONNECT_SECONDS = 10.0
PAUSE_SECONDS = 0.05
# Otherwise channels with equal targets would share one connection.
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)


@dataclass(frozen=True)
class Result:
    """The results. `figures` are named with their units; a figure without any measurement is None."""

    settings: Settings
    task: str
    version: str
    quantization: str
    calls: int
    errors: dict[str, int]
    error_texts: dict[str, str]
    figures: dict[str, float | None]

    def to_json(self) -> dict[str, object]:
        """Returns one flat object: settings, what was served, figures."""
        # The caller's target and key are left out.
        settings = {key: value for key, value in vars(self.settings).items() if key != "server"}
        settings |= {"target": self.settings.server.target, "tls": self.settings.server.secure}
        settings |= {"texts": str(self.settings.texts or "built-in"), "client_tier": measured_on()}
        served = {"task": self.task, "version": self.version, "quantization": self.quantization}
        outcome = {"calls": self.calls, "errors": self.errors, "error_texts": self.error_texts}
        return settings | served | outcome | self.figures


def run(settings: Settings) -> Result:
    """Measures; takes warm-up, seconds and at most 10 s to connect.

    Raises CallFailed if the server can't be reached, refuses the key or does not know the model, UserError for a batch
    that is too large for the model, and StepFailed if no call succeeded.
    """
    return asyncio.run(measure(settings))


async def measure(settings: Settings) -> Result:
    """The same as `run`, inside a running event loop."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(settings.server.open_async(OWN_CONNECTION))
            for _ in range(settings.connections)
        ]
        served = await _get_model(channels[0], settings)
        await _ready(channels, str(settings.server.target))
        call_on = calls_of(served, settings)
        begin = time.perf_counter() + settings.warmup
        tally = Tally(begin, begin + settings.seconds)
        calls = [asyncio.create_task(_repeat(call_on(channel), tally)) for channel in channels]
        try:
            await _until(tally.begin, calls)
            cpu = time.process_time()
            await _until(tally.end, calls)
            cpu = time.process_time() - cpu
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
    if not tally.latencies:
        refusals = "".join(f"; {code}: {text}" for code, text in tally.error_texts.items())
        raise StepFailed(
            f"no call was answered in {settings.seconds:g} s{refusals}", "" if refusals else "measure longer"
        )
    return Result(
        settings=settings,
        task=TASK_NAMES[served.model.task],
        version=served.model.version,
        quantization=served.model.quantization,
        calls=len(tally.latencies),
        errors=dict(tally.errors),
        error_texts={code: tally.error_texts[code] for code in tally.errors},
        figures=_figures(served.model.task, settings, tally) | {"client_cpu": round(cpu / settings.seconds, 3)},
    )


async def _ready(channels: list[grpc.aio.Channel], target: str) -> None:
    """Connects all channels before the first call, so that none connects while others are measured."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.gather(*(channel.channel_ready() for channel in channels))
    except TimeoutError:
        raise UserError(
            f"--target {target}: does not accept {len(channels)} connections", "use fewer --connections"
        ) from None


async def _get_model(channel: grpc.aio.Channel, settings: Settings) -> models.GetModelResponse:
    try:
        served: models.GetModelResponse = await ModelServiceStub(channel).GetModel(
            models.GetModelRequest(model=settings.model),
            **settings.server.options | {"timeout": min(CONNECT_SECONDS, settings.server.timeout)},
        )
    except grpc.aio.AioRpcError as error:
        raise failure(error, settings.server) from None
    most = 1 if served.model.task == checkpoint.TASK_GENERATION else served.model.limits.max_inputs
    if settings.batch > most > 0:
        raise UserError(f"--batch {settings.batch}: model {settings.model} takes at most {most} a call")
    return served


async def _until(when: float, calls: list[asyncio.Task[None]]) -> None:
    """Sleeps until `when`. Connections never end by themselves: if one did, by a bug, its exception is raised here."""
    done, _ = await asyncio.wait(calls, timeout=max(0, when - time.perf_counter()), return_when="FIRST_EXCEPTION")
    for call in done:
        call.result()


async def _repeat(call: Call, tally: Tally) -> None:
    while True:
        try:
            await call(tally)
        except grpc.aio.AioRpcError as error:
            tally.fail(error.code().name, error.details() or "", time.perf_counter())
            await asyncio.sleep(PAUSE_SECONDS)


def _figures(task: checkpoint.Task, settings: Settings, tally: Tally) -> dict[str, float | None]:
    """Returns the figures of the task, by name with unit."""
    seconds = settings.seconds
    rates = {
        "calls_per_s": round(len(tally.latencies) / seconds, 3),
        "input_tokens_per_s": round(tally.prompt_tokens / seconds, 1),
    }
    if task != checkpoint.TASK_GENERATION:
        return {"texts_per_s": round(tally.inputs / seconds, 2)} | rates | milliseconds("e2el", tally.latencies)
    generated = {"output_tokens_per_s": round(tally.output_tokens / seconds, 2)} | rates
    if not settings.stream:
        return generated | milliseconds("e2el", tally.latencies)
    return (
        generated
        | milliseconds("ttft", tally.first_tokens)
        | milliseconds("itl", tally.gaps)
        | milliseconds("tpot", tally.per_token)
        | milliseconds("e2el", tally.latencies)
        | {"tokens_per_message": round(tally.message_tokens / tally.messages, 2) if tally.messages else None}
    )
