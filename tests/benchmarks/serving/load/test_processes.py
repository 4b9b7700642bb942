"""Several client processes against one server, which is in this process."""

import asyncio

import pytest

from tuneserve.benchmarks.serving.load.arrivals import gamma
from tuneserve.benchmarks.serving.load.processes import run
from tuneserve.call.channel import CallFailed
from tuneserve.errors import StepFailed

from ..conftest import Server, settings


async def test_processes_share_the_connections(served: tuple[Server, str]) -> None:
    server, target = served
    result = await asyncio.to_thread(run, settings(target, "sentiment", connections=5, processes=2, seconds=0.6))
    assert len(server.peers) == 5
    assert server.most_running == 5
    # Warm-up calls, and those cut off at the end, are not counted.
    assert 0 < result.calls < len(server.requests)
    assert result.figures["calls_per_s"] == pytest.approx(result.calls / 0.6, abs=0.01)
    sent = [entry.text for request in server.requests for entry in request.inputs]
    assert len(set(sent)) == len(sent)
    assert (result.settings.processes, result.settings.connections) == (2, 5)


async def test_processes_share_the_arrivals(served: tuple[Server, str]) -> None:
    server, target = served
    chosen = settings(target, "sentiment", rate=100.0, seed=3, warmup=0.0, seconds=1.0, processes=3)
    result = await asyncio.to_thread(run, chosen)
    due = len(list(gamma(100.0, 1.0, seed=3)))
    assert result.calls == len(server.requests) == due
    # As one process would: an own number for each call, without a gap.
    numbers = sorted(int(request.inputs[0].text.split()[0]) for request in server.requests)
    assert numbers == list(range(numbers[0], numbers[0] + due))


async def test_an_error_of_a_process_is_the_run_s(served: tuple[Server, str]) -> None:
    server, target = served
    with pytest.raises(CallFailed, match="served: sentiment, ner, chat"):
        await asyncio.to_thread(run, settings(target, "other", processes=2))
    server.refuse = 1
    with pytest.raises(StepFailed, match="RESOURCE_EXHAUSTED: queue full"):
        await asyncio.to_thread(run, settings(target, "sentiment", processes=2))


async def test_there_are_no_more_processes_than_connections(served: tuple[Server, str]) -> None:
    server, target = served
    result = await asyncio.to_thread(run, settings(target, "sentiment", connections=2, processes=9))
    assert (len(server.peers), server.most_running) == (2, 2)
    assert result.calls > 0
