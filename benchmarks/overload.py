"""Our server with several times the calls that it can answer: batches of texts, in an open loop.

The peak comes first, from a closed loop that keeps the server busy; then the open loop at a multiple of it, on the
same server. The client runs in this process and the server in its own. Batches are large, because client and
refusals take their time from an engine on the same cores: ten times as many batches of 16 cost it a third.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from tuneserve.benchmarks import processes
from tuneserve.benchmarks.grpc_client import open_channels
from tuneserve.benchmarks.job import texts
from tuneserve.benchmarks.open_loop import Call, Result, closed_loop, open_loop, queue_seconds, usual
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

CONNECTIONS = 16


@dataclass(frozen=True)
class Overload:
    """What was measured."""

    times: float  # the peak
    peak: float  # calls a second
    usual_ms: float  # a call's time on the idle server
    result: Result
    grown_mib: int  # of the server's memory, from the peak's end on

    def to_json(self) -> dict[str, object]:
        """One flat object."""
        return {
            "times": self.times,
            "peak_per_s": round(self.peak, 2),
            "usual_ms": round(self.usual_ms, 1),
            "goodput_of_peak": round(self.result.goodput / self.peak, 3),
            "grown_mib": self.grown_mib,
            **self.result.to_json(),
        }


def classify(channels: Sequence[grpc.aio.Channel], model: str, batch: int) -> Call:
    """Returns a call that classifies `batch` texts, on one channel after the other."""
    sentences = texts(16 * batch, seed=0)

    async def call(number: int) -> float | None:
        start = number % 16 * batch
        inputs = [pb.ClassifyInput(text=text) for text in sentences[start : start + batch]]
        stub = ClassificationServiceStub(channels[number % len(channels)])
        answer = stub.Classify(pb.ClassifyRequest(model=model, inputs=inputs))
        await answer
        return queue_seconds(await answer.trailing_metadata())

    return call


async def overload(
    target: str, model: str, session: int, *, batch: int = 64, times: float = 10.0, seconds: float = 20.0
) -> Overload:
    """Measures a running server, whose processes are `session`."""
    async with open_channels(target, CONNECTIONS) as channels:
        call = classify(channels, model, batch)
        await closed_loop(call, 4, 1.0)
        usual_seconds = await usual(call)
        peak = await closed_loop(call, CONNECTIONS * 2, seconds / 2, warmup=2.0)
        before = processes.usage(session).resident
        result = await open_loop(call, times * peak, seconds, seed=1, usual_seconds=usual_seconds)
        grown = processes.usage(session).resident - before
    return Overload(times, peak, usual_seconds * 1000, result, grown >> 20)
