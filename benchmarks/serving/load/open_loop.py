"""An open loop: calls arrive at a given rate, whatever the server's speed. Shows what happens under overload.

The regime. Arrivals are a Poisson process of a given rate and seed, each call a task of its own that waits for no
other. Every time is measured from the moment a call was due, not from when it was sent: a client that is delayed by
the server, or by itself, would leave out the very waits that matter (coordinated omission). `lag` is how late calls
were sent: if it is large, the figures say as much about the client as about the server. Every call that was due counts
as exactly one of: answered; rejected by the server (RESOURCE_EXHAUSTED); failed. Failed are all other statuses, and
calls that this program could not send in time or gave up on; their time ends when it gave up.
`closed_loop` measures the capacity; the rate can then be set to a multiple of it.

Knows nothing of models or tasks: `call` makes one call.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

import grpc

from tuneserve.benchmarks.serving.load.arrivals import arrivals, gamma
from tuneserve.benchmarks.serving.load.tally import milliseconds

# Makes one call; the argument is its running number. Returns the server's own figure of its time in the queue (see
# `queue_seconds`), or None if the server gives none. Raises AioRpcError unless the call is answered.
Call = Callable[[int], Awaitable[float | None]]

# Calls that still run this long after the last arrival are cancelled, and counted as UNFINISHED.
PATIENCE_SECONDS = 120.0
UNFINISHED = "UNFINISHED"
# Calls that were due, but could not be sent before the time was over.
UNSENT = "UNSENT"
_GRACE_SECONDS = 0.1
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Result:
    """The results. Figures are named with their units; a figure without any measurement is None."""

    rate: float  # arrivals a second
    seconds: float  # of arrivals
    seed: int
    due: int
    sent: int
    answered: int
    errors: dict[str, int]  # by status, rejections included
    pushed_back: int  # rejections with a time to retry after
    answered_per_s: float  # in the second half of the time: the first fills the queue
    # Milliseconds: e2el (of answers), reject and failed, each since the call was due; wait, the server's own figure of
    # the time in its queue; lag, from due to sent.
    figures: dict[str, float | None]
    recovery_seconds: float | None  # from the last arrival to an answer in the usual time; None if not measured

    def to_json(self) -> dict[str, object]:
        """Returns one flat object."""
        return {key: value for key, value in asdict(self).items() if key != "figures"} | self.figures

    @property
    def rejected(self) -> int:
        """Number of calls that the server rejected."""
        return self.errors.get(grpc.StatusCode.RESOURCE_EXHAUSTED.name, 0)


@dataclass
class _Seen:
    ends: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    rejects: list[float] = field(default_factory=list)
    failures: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    pushed_back: int = 0

    async def call(self, call: Call, number: int, due: float) -> None:
        """Makes one call, and measures it from the time `due`."""
        self.lags.append(time.perf_counter() - due)
        try:
            waited = await call(number)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                self.fail(error.code().name, due)
                return
            self.errors[error.code().name] += 1
            self.rejects.append(time.perf_counter() - due)
            self.pushed_back += any(key == "grpc-retry-pushback-ms" for key, _ in error.trailing_metadata() or ())
            return
        except asyncio.CancelledError:
            self.fail(UNFINISHED, due)
            raise
        now = time.perf_counter()
        self.ends.append(now)
        self.answers.append(now - due)
        if waited is not None:
            self.waits.append(waited)

    def fail(self, why: str, due: float) -> None:
        """Counts a call that was due at `due` and ends now without an answer."""
        self.errors[why] += 1
        self.failures.append(time.perf_counter() - due)


async def open_loop(call: Call, rate: float, seconds: float, seed: int, usual_seconds: float | None = None) -> Result:
    """Sends calls for `seconds` at `rate` a second, and waits until all have ended.

    `usual_seconds` is the time of a call on an idle server. If it is given, the recovery is measured, too: calls are
    made one after the other until one is answered within twice that time.
    """
    seen, numbers, begin = _Seen(), count(), time.perf_counter()
    end, calls, unsent = begin + seconds, list[asyncio.Task[None]](), list[float]()
    async for due in arrivals(gamma(rate, seconds, seed), begin):
        if time.perf_counter() < end + _GRACE_SECONDS:
            calls.append(asyncio.create_task(seen.call(call, next(numbers), due)))
        else:
            unsent.append(due)
    await asyncio.sleep(max(0.0, end - time.perf_counter()))
    for due in unsent:
        seen.lags.append(time.perf_counter() - due)
        seen.fail(UNSENT, due)
    recovery = await _recovery(call, usual_seconds, numbers) if usual_seconds is not None else None
    await _finish(calls)
    middle = begin + seconds / 2
    return Result(
        rate=rate,
        seconds=seconds,
        seed=seed,
        due=len(calls) + len(unsent),
        sent=len(calls),
        answered=len(seen.answers),
        errors=dict(seen.errors),
        pushed_back=seen.pushed_back,
        answered_per_s=sum(middle <= when < end for when in seen.ends) / (end - middle),
        figures=_figures(seen),
        recovery_seconds=recovery,
    )


async def closed_loop(call: Call, connections: int, seconds: float, warmup: float = 0.0) -> float:
    """Returns the answers per second of this many callers, each of which calls again when it is answered.

    After a refusal a caller pauses first.
    """
    begin = time.perf_counter() + warmup
    end, numbers, answered = begin + seconds, count(), 0

    async def repeat() -> None:
        nonlocal answered
        while time.perf_counter() < end:
            try:
                await call(next(numbers))
            except grpc.aio.AioRpcError:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            answered += begin <= time.perf_counter() < end

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(repeat())
    return answered / seconds


async def usual(call: Call, times: int = 5) -> float:
    """Returns the longest time of a few calls made one after the other, in seconds."""
    longest = 0.0
    for number in range(times):
        started = time.perf_counter()
        await call(number)
        longest = max(longest, time.perf_counter() - started)
    return longest


def queue_seconds(metadata: Sequence[tuple[str, Any]] | None) -> float | None:
    """Reads the time in the queue from the `server-timing` that ends an answer: "queue;dur=1.5, engine;dur=20"."""
    waits = [
        float(entry.strip().removeprefix("queue;dur="))
        for key, value in metadata or ()
        if key == "server-timing"
        for entry in str(value).split(",")
        if entry.strip().startswith("queue;dur=")
    ]
    return sum(waits) / 1000 if waits else None


async def _recovery(call: Call, usual_seconds: float, numbers: "count[int]") -> float | None:
    begin = time.perf_counter()
    while (now := time.perf_counter()) < begin + PATIENCE_SECONDS:
        try:
            await call(next(numbers))
        except grpc.aio.AioRpcError:
            await asyncio.sleep(_PAUSE_SECONDS)
            continue
        if time.perf_counter() - now <= 2 * usual_seconds:
            return now - begin
    return None


async def _finish(calls: list[asyncio.Task[None]]) -> None:
    if not calls:
        return
    done, late = await asyncio.wait(calls, timeout=PATIENCE_SECONDS)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    await asyncio.gather(*done)  # Raises bugs of the caller, which must not be counted as lost calls.


def _figures(seen: _Seen) -> dict[str, float | None]:
    return (
        milliseconds("e2el", seen.answers)
        | milliseconds("reject", seen.rejects, [50, 99])
        | milliseconds("failed", seen.failures, [50, 99])
        | milliseconds("wait", seen.waits, [50, 99])
        | milliseconds("lag", seen.lags, [50, 99])
    )
