"""The pages of real metrics, served by the real HTTP server, as one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tuneserve.server.metrics import Metrics
from tuneserve.server.processes.merged_metrics import MergedMetrics, Source
from tuneserve.server.transport import connections
from tuneserve.server.transport.metrics_http import MetricsServer


@asynccontextmanager
async def serving(number: int, pid: int) -> AsyncIterator[tuple[Metrics, Source]]:
    metrics = Metrics()
    bound = connections.sockets("127.0.0.1:0", "metrics_listen")
    server = MetricsServer(metrics.page, bound)
    await server.start()
    try:
        yield metrics, Source(number, pid, f"127.0.0.1:{bound[0].getsockname()[1]}")
    finally:
        server.close()


async def read(merged: MergedMetrics) -> dict[str, list]:
    """The samples of the page by their names."""
    page = await asyncio.to_thread(merged.page, {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: None)
    found: dict[str, list] = {}
    for family in text_string_to_metric_families(b"".join(page).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@pytest.fixture
async def two():
    async with serving(0, 10) as first, serving(1, 11) as second:
        yield first, second


async def test_what_is_counted_is_added_up(two):
    (first, one), (second, other) = two
    for metrics in (first, second):
        metrics.texts.labels("sentiment").inc(2)
        metrics.queue_wait.labels("sentiment").observe(0.01)
    second.texts.labels("topics").inc()
    found = await read(MergedMetrics(lambda: [one, other]))
    assert found["tuneserve_texts_classified_total"] == [({"model": "sentiment"}, 4), ({"model": "topics"}, 1)]
    assert found["tuneserve_queue_wait_seconds_count"] == [({"model": "sentiment"}, 2)]
    buckets = [(labels["le"], value) for labels, value in found["tuneserve_queue_wait_seconds_bucket"]]
    assert buckets[2:4] == [("0.005", 0), ("0.01", 2)]
    assert buckets[-1] == ("+Inf", 2)


async def test_a_gauge_is_a_sum_or_the_same_or_of_one_process(two):
    (first, one), (second, other) = two
    for number, metrics in enumerate((first, second)):
        metrics.queue_depth.labels("chat").set(3)
        metrics.certificate_expiry.set(1000)
        metrics.engine_up.labels("chat", "v1").set(number)
    found = await read(MergedMetrics(lambda: [one, other]))
    assert found["tuneserve_queue_depth"] == [({"model": "chat"}, 6)]
    assert found["tuneserve_certificate_expiry_timestamp_seconds"] == [({}, 1000)]
    assert found["tuneserve_engine_up"] == [
        ({"model": "chat", "version": "v1", "process": str(number)}, number) for number in range(2)
    ]


async def test_a_sum_never_falls(two):
    (first, one), (second, other) = two
    running = [one, other]
    merged = MergedMetrics(lambda: running)

    async def texts() -> float:
        [(_, value)] = (await read(merged))["tuneserve_texts_classified_total"]
        return value

    first.texts.labels("a").inc(5)
    second.texts.labels("a").inc(1)
    second.queue_depth.labels("a").set(1)
    assert await texts() == 6
    running.remove(one)
    assert await texts() == 6, "that of a process that has ended is kept"
    async with serving(0, 12) as (again, restarted):
        running.append(restarted)
        again.texts.labels("a").inc(1)
        assert await texts() == 7
    assert await texts() == 7, "nor when one does not answer"
    assert (await read(merged))["tuneserve_queue_depth"] == [({"model": "a"}, 1)]


async def test_the_processes_themselves(two):
    (_, one), (_, other) = two
    merged = MergedMetrics(lambda: [one, other])
    merged.up.labels(0).set(1)
    merged.restarts.labels(1).inc()
    found = await read(merged)
    assert found["tuneserve_process_up"] == [({"process": "0"}, 1)]
    assert found["tuneserve_process_restarts_total"] == [({"process": "1"}, 1)]
