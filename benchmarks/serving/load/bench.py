"""Load on a running server, in a closed or an open loop.

The regimes. In a closed loop, N connections each send their next call when the last one has ended, so there are never
more than N calls in the server: when it slows down, so does the load. So latency hides the queueing that callers
arriving independently would see, and throughput is the most that N connections can reach. After an error a connection
pauses for 50 ms, so that a refusing server is not called in a tight loop. Calls still running at the end are cancelled.

In an open loop, calls arrive at a given rate, on the connections in turn, whatever the server's speed: by default as a
Poisson process, in bursts with a `burstiness` below 1, or when those of a trace did. All times are
measured from when a call was due: a client that is late would leave out the waits that matter. `lag` is how late calls
were sent. Calls count that were due in the measured time; at its end, those that still run are waited for.

The first seconds are a warm-up and are not counted. Classification: `batch` texts per call. Generation: one prompt per
call, greedy, and exactly `max_tokens` tokens per answer, end token or not. No input is sent twice (inputs.py).

Figures have the usual names. TTFT: from sending to the first message with a token. ITL: between one message of an
answer and the next, as in `vllm bench serve`; `tokens_per_message` is the mean number of tokens of a message, since a
server that joins tokens has fewer and longer gaps. TPOT: from the first message to the last, per token after those of
the first message. E2EL: the whole call. p50, p90, p99 and p99.9 in milliseconds. A call is good if each time of it that
has a goal is within that; errors are not.

`client_cpu` is the share of a core that the busiest client process used. In a closed loop, where no call is
due, `lag` is how late timers of the client are, every 10 ms. If the share was most of a core, or the lag was over 10 ms
in one case of a hundred, the run is `invalid`: the server may do more, and `processes` help.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager

from tuneserve.benchmarks.serving.load import trace
from tuneserve.benchmarks.serving.load.apis import oip, ours
from tuneserve.benchmarks.serving.load.arrivals import arrivals, gamma
from tuneserve.benchmarks.serving.load.calls import Call, Refused, Send, Served, calling
from tuneserve.benchmarks.serving.load.inputs import conversations
from tuneserve.benchmarks.serving.load.result import Part, Result, joined
from tuneserve.benchmarks.serving.load.settings import Settings, Share
from tuneserve.benchmarks.serving.load.tally import Tally
from tuneserve.errors import UserError

PAUSE_SECONDS = 0.05
_TICK_SECONDS = 0.01


async def measure(settings: Settings) -> Result:
    """Measures with this process alone, inside a running event loop. Raises what `processes.run` raises."""
    return joined(settings, [await part(settings, Share())])


async def part(settings: Settings, share: Share, together: Callable[[], Awaitable[object]] | None = None) -> Part:
    """Makes the calls of one process. When it is connected, it waits for the others with `together`."""
    async with _opened(settings) as (served, senders):
        most = 1 if served.generates else served.max_inputs
        if settings.batch > most > 0:
            raise UserError(f"--batch {settings.batch}: model {settings.model} takes at most {most} a call")
        if settings.turns > 1 and served.call != "chat":
            raise UserError(f"--turns {settings.turns}: needs --call chat, not {served.call}")
        inputs = conversations(settings, served.call, share)
        times = share.deal(_times(settings)) if settings.is_open else []
        each = [calling(send, inputs) for send in senders]
        if together:
            await together()
        begin = time.perf_counter() + settings.warmup
        goals = {name: most / 1000 for name, most in settings.goodput.items()}
        tally = Tally(begin, begin + settings.seconds, settings.is_open, goals)
        if settings.is_open:
            calls = [asyncio.create_task(_arrive(each, tally, times, begin - settings.warmup))]
        else:
            calls = [asyncio.create_task(_repeat(call, tally)) for call in each]
            calls.append(asyncio.create_task(_tick(tally)))
        try:
            await _until(tally.begin, calls)
            cpu = time.process_time()
            await _until(tally.end, calls)
            cpu = time.process_time() - cpu
            if settings.is_open:
                await calls[0]
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
    return Part(served, tally, cpu / settings.seconds)


def _opened(settings: Settings) -> AbstractAsyncContextManager[tuple[Served, list[Send]]]:
    if settings.api == "openai":
        try:
            from tuneserve.benchmarks.serving.load.apis import openai
        except ModuleNotFoundError as error:  # it comes with vLLM
            raise UserError(f"--api openai needs {error.name}", f"pip install {error.name}") from None
        return openai.opened(settings)
    return oip.opened(settings) if settings.api == "oip" else ours.opened(settings)


async def _until(when: float, calls: list[asyncio.Task[None]]) -> None:
    """Sleeps until `when`. Connections never end by themselves: if one did, by a bug, its exception is raised here."""
    done, _ = await asyncio.wait(calls, timeout=max(0, when - time.perf_counter()), return_when="FIRST_EXCEPTION")
    for call in done:
        call.result()


async def _repeat(call: Call, tally: Tally) -> None:
    while True:
        try:
            await call(tally, time.perf_counter())
        except Refused as error:
            tally.fail(error.code, error.text, time.perf_counter())
            await asyncio.sleep(PAUSE_SECONDS)


async def _tick(tally: Tally) -> None:
    """Measures how late this process is, until it is cancelled."""
    while True:
        due = time.perf_counter() + _TICK_SECONDS
        await asyncio.sleep(_TICK_SECONDS)
        tally.late(due)


def _times(settings: Settings) -> Iterable[float]:
    """Returns the seconds from the begin of the warm-up at which calls are due."""
    seconds = settings.warmup + settings.seconds
    if settings.rate is None:
        assert settings.trace
        return trace.arriving(settings.trace, seconds)
    return gamma(settings.rate, seconds, settings.seed, settings.burstiness)


async def _arrive(calls: Sequence[Call], tally: Tally, times: Iterable[float], begin: float) -> None:
    turns = itertools.cycle(calls)
    async with asyncio.TaskGroup() as group:
        async for due in arrivals(times, begin):
            group.create_task(_one(next(turns), tally, due))


async def _one(call: Call, tally: Tally, due: float) -> None:
    tally.late(due)
    try:
        await call(tally, due)
    except Refused as error:
        tally.fail(error.code, error.text, due)
