"""Load on a running server, in a closed or an open loop.

The regimes. In a closed loop, N connections each send their next call when the last one has ended, so there are never
more than N calls in the server: when it slows down, so does the load. So latency hides the queueing that callers
arriving independently would see, and throughput is the most that N connections can reach. After an error a connection
pauses for 50 ms, so that a refusing server is not called in a tight loop. Calls still running at the end are cancelled.

In an open loop, calls arrive at a given rate, on the connections in turn, whatever the server's speed. All times are
measured from when a call was due: a client that is late would leave out the waits that matter. `lag` is how late calls
were sent. Calls count that were due in the measured time; at its end, those that still run are waited for.

The first seconds are a warm-up and are not counted. Classification: `batch` texts per call. Generation: one prompt per
call, greedy, and exactly `max_tokens` tokens per answer, end token or not. No input is sent twice (calls.py).

Figures have the usual names. TTFT: from sending to the first message with a token. ITL: between one message of an
answer and the next, as in `vllm bench serve`; `tokens_per_message` is the mean number of tokens of a message, since a
server that joins tokens has fewer and longer gaps. TPOT: from the first message to the last, per token after those of
the first message. E2EL: the whole call. p50, p90, p99 and p99.9 in milliseconds. A call is good if each time of it that
has a goal is within that; errors are not.

If this program used most of a core, or was late to send, `client_limited` is true: the server may do more.

It calls the server over gRPC only, and gets the task from ModelService.GetModel.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc

from tuneserve.benchmarks.serving.load.arrivals import arrivals
from tuneserve.benchmarks.serving.load.calls import Call, Settings, calls_of
from tuneserve.benchmarks.serving.load.tally import Tally, milliseconds
from tuneserve.call.channel import failure
from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.errors import StepFailed, UserError
from tuneserve.machine.tiers import measured_on
from tuneserve.v1 import checkpoint_pb2 as checkpoint
from tuneserve.v1 import model_pb2 as models
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

CONNECT_SECONDS = 10.0
PAUSE_SECONDS = 0.05
# From here on, this program's own speed limits the load: a share of a core, and milliseconds.
BUSY, LATE = 0.8, 10.0
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

    @property
    def client_limited(self) -> bool:
        """Whether this program's own speed limited the load."""
        return (self.figures["client_cpu"] or 0) > BUSY or (self.figures.get("lag_ms_p99") or 0) > LATE

    @property
    def good_share(self) -> float:
        """The share of good calls among all, errors included."""
        return (self.figures["goodput_per_s"] or 0) * self.settings.seconds / (self.calls + sum(self.errors.values()))

    def to_json(self) -> dict[str, object]:
        """Returns one flat object: settings, what was served, figures."""
        # The caller's target and key are left out.
        settings = {key: value for key, value in vars(self.settings).items() if key != "server"}
        settings |= {"target": self.settings.server.target, "tls": self.settings.server.secure}
        settings |= {"texts": str(self.settings.texts or "built-in"), "client_tier": measured_on()}
        served = {"task": self.task, "version": self.version, "quantization": self.quantization}
        outcome = {"calls": self.calls, "errors": self.errors, "error_texts": self.error_texts}
        outcome["client_limited"] = self.client_limited
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
        goals = {name: most / 1000 for name, most in settings.goodput.items()}
        tally = Tally(begin, begin + settings.seconds, settings.rate is not None, goals)
        if settings.rate is None:
            calls = [asyncio.create_task(_repeat(call_on(channel), tally)) for channel in channels]
        else:
            calls = [asyncio.create_task(_arrive([call_on(channel) for channel in channels], tally, settings))]
        try:
            await _until(tally.begin, calls)
            cpu = time.process_time()
            await _until(tally.end, calls)
            cpu = time.process_time() - cpu
            if settings.rate is not None:
                await calls[0]
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
            await call(tally, time.perf_counter())
        except grpc.aio.AioRpcError as error:
            tally.fail(error.code().name, error.details() or "", time.perf_counter())
            await asyncio.sleep(PAUSE_SECONDS)


async def _arrive(calls: Sequence[Call], tally: Tally, settings: Settings) -> None:
    assert settings.rate is not None
    turns = itertools.cycle(calls)
    async with asyncio.TaskGroup() as group:
        async for due in arrivals(settings.rate, tally.begin - settings.warmup, tally.end, settings.seed):
            group.create_task(_one(next(turns), tally, due))


async def _one(call: Call, tally: Tally, due: float) -> None:
    if due >= tally.begin:
        tally.lags.append(time.perf_counter() - due)
    try:
        await call(tally, due)
    except grpc.aio.AioRpcError as error:
        tally.fail(error.code().name, error.details() or "", due)


def _figures(task: checkpoint.Task, settings: Settings, tally: Tally) -> dict[str, float | None]:
    """Returns the figures of the task, by name with unit."""
    seconds = settings.seconds
    rates = {
        "calls_per_s": round(len(tally.latencies) / seconds, 3),
        "input_tokens_per_s": round(tally.prompt_tokens / seconds, 1),
    }
    if settings.goodput:
        rates["goodput_per_s"] = round(tally.good / seconds, 3)
    lags = milliseconds("lag", tally.lags, [50, 99]) if settings.rate is not None else {}
    if task != checkpoint.TASK_GENERATION:
        return {"texts_per_s": round(tally.inputs / seconds, 2)} | rates | lags | milliseconds("e2el", tally.latencies)
    generated = {"output_tokens_per_s": round(tally.output_tokens / seconds, 2)} | rates | lags
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
