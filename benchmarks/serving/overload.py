"""Our server under overload, with several times the calls that it can answer: batches of texts, in an open loop.

Each round measures the peak, in a closed loop that keeps the server busy, and the open loop at a multiple of it, for
the same time on the same server; every other round begins with the open loop. The rate is a multiple of the peak of
the warm-up, and the same in all rounds. The client runs in this process and the server in its own. Batches are large,
because client and refusals take CPU time from an engine on the same cores: ten times as many batches of 16 cost the
engine a third of its speed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import grpc

from tuneserve.benchmarks import processes
from tuneserve.benchmarks.claims import MIN_ROUNDS
from tuneserve.benchmarks.serving.load.open_loop import Call, Result, closed_loop, open_loop, queue_seconds, usual
from tuneserve.benchmarks.serving.workers.grpc_client import open_channels
from tuneserve.benchmarks.serving.workers.job import texts
from tuneserve.errors import StepFailed
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

CONNECTIONS = 16


@dataclass(frozen=True)
class Round:
    """The peak, in calls a second, and the open loop."""

    peak: float
    result: Result

    def to_json(self) -> dict[str, object]:
        """One flat object."""
        ratio = self.result.answered_per_s / self.peak
        return {"peak_per_s": round(self.peak, 2), "of_peak": round(ratio, 3), **self.result.to_json()}


@dataclass(frozen=True)
class Overload:
    """The results."""

    times: float  # the peak of the warm-up
    usual_ms: float  # a call's time on the idle server
    rounds: list[Round]
    grown_mib: int  # growth of the server's memory since the end of the warm-up

    def to_json(self) -> dict[str, object]:
        """One object."""
        return {
            "times": self.times,
            "usual_ms": round(self.usual_ms, 1),
            "grown_mib": self.grown_mib,
            "rounds": [one.to_json() for one in self.rounds],
        }

    def medians(self) -> dict[str, float | None]:
        """Each figure's median over the rounds, and the figures common to all rounds; None if no round measured it."""
        found: dict[str, float | None] = {"usual_ms": self.usual_ms, "grown_mib": self.grown_mib}
        rounds = [one.to_json() for one in self.rounds]
        for key, first in rounds[0].items():
            values = [value for one in rounds if isinstance(value := one[key], int | float)]
            if values or first is None:
                found[key] = median(values) if values else None
        return found


def classify(channels: Sequence[grpc.aio.Channel], model: str, batch: int) -> Call:
    """Returns a call that classifies `batch` texts, on one channel after the other."""
    sentences = texts(16 * batch, seed=0)
    calls = [ClassificationServiceStub(channel).Classify for channel in channels]

    async def call(number: int) -> float | None:
        start = number % 16 * batch
        inputs = [pb.ClassifyInput(text=text) for text in sentences[start : start + batch]]
        answer = calls[number % len(calls)](pb.ClassifyRequest(model=model, inputs=inputs))
        await answer
        return queue_seconds(await answer.trailing_metadata())

    return call


async def overload(
    target: str,
    model: str,
    session: int,
    *,
    batch: int = 64,
    times: float = 10.0,
    seconds: float = 10.0,
    rounds: int = MIN_ROUNDS,
    show: Callable[[str], None] = lambda line: None,
) -> Overload:
    """Measures a running server, whose processes are `session`. Raises StepFailed if a round had no answer."""
    async with open_channels(target, CONNECTIONS) as channels:
        call = classify(channels, model, batch)
        await closed_loop(call, 4, 1.0)
        usual_seconds = await usual(call)
        rate = times * await closed_loop(call, CONNECTIONS * 2, seconds)
        if not rate:
            raise StepFailed(f"overload: no call was answered in {seconds:g} s", "")
        before, measured = processes.usage(session).resident, list[Round]()
        for number in range(rounds):
            peak, result = 0.0, None
            for part in ("peak", "overload") if number % 2 == 0 else ("overload", "peak"):
                if part == "peak":
                    peak = await closed_loop(call, CONNECTIONS * 2, seconds, warmup=min(1.0, seconds / 2))
                else:
                    result = await open_loop(call, rate, seconds, seed=1 + number, usual_seconds=usual_seconds)
            if not peak or result is None or not result.answered_per_s:
                raise StepFailed(f"overload, round {number + 1}: no call was answered", "")
            measured.append(Round(peak, result))
            show(f"round {number + 1}: peak {peak:.1f}/s, overload {result.answered_per_s:.1f}/s")
        grown = processes.usage(session).resident - before
    return Overload(times, usual_seconds * 1000, measured, grown >> 20)
