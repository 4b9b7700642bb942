"""What is kept of a call: each of its traces once, whoever made it and however it ended."""

import json
import logging
import time

import grpc
import pytest
from prometheus_client import CollectorRegistry

from tuneserve.server.call.context import Call
from tuneserve.server.call.records import Records
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.call.tracing import Tracing
from tuneserve.server.metrics import Metrics
from tuneserve.v1 import checkpoint_pb2 as pb

LABELS = {"grpc_type": "unary", "grpc_service": "tuneserve.v1.S", "grpc_method": "Classify"}


def call(**fields) -> Call:
    return Call("req-1", "Classify", Tenant("acme"), {}, Metrics(), service="tuneserve.v1.S", **fields)


def lines(caplog) -> list[dict]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "tuneserve.requests"]


@pytest.fixture(autouse=True)
def listening(caplog):
    caplog.set_level(logging.INFO, "tuneserve.requests")


@pytest.mark.parametrize(
    ("deadline", "code", "shown"),
    [
        (None, grpc.StatusCode.OK, "OK"),
        (None, None, "CANCELLED"),
        (-1.0, None, "DEADLINE_EXCEEDED"),
        (3600.0, None, "CANCELLED"),
        (-1.0, grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
    ],
)
def test_a_call_is_counted_by_how_it_ended(deadline, code, shown, caplog):
    metrics = Metrics()
    metrics.loaded("m", "0123", pb.Checkpoint(task=pb.TASK_EMBEDDING), CollectorRegistry(), 1.0)
    records = Records(metrics, log_requests=True)
    one = call(deadline=None if deadline is None else time.monotonic() + deadline)
    records.begin(one)
    one.model, one.version = "m", "0123"
    one.count(prompt=5, completion=2)
    records.end(one, code)
    sample = metrics.registry.get_sample_value
    assert sample("grpc_server_started_total", LABELS) == 1
    assert sample("grpc_server_handled_total", {**LABELS, "grpc_code": shown}) == 1
    assert sample("grpc_server_handling_seconds_count", LABELS) == 1
    version = {"model": "m", "version": "0123", "grpc_code": shown}
    assert sample("tuneserve_version_calls_total", version) == 1
    assert sample("tuneserve_tenant_calls_total", {"tenant": "acme", "grpc_code": shown}) == 1
    assert sample("tuneserve_tenant_tokens_total", {"tenant": "acme", "model": "m", "kind": "prompt"}) == 5
    assert sample("tuneserve_tenant_tokens_total", {"tenant": "acme", "model": "m", "kind": "completion"}) == 2
    [line] = lines(caplog)
    assert (line["status"], line["tenant"], line["model"], line["prompt_tokens"]) == (shown, "acme", "m", 5)


def test_nothing_is_logged_unless_it_is_asked_for(caplog):
    records, one = Records(Metrics(), log_content=True), call()
    records.begin(one)
    records.end(one, grpc.StatusCode.OK)
    assert lines(caplog) == []


@pytest.mark.parametrize("is_asked", [False, True])
def test_content_is_kept_where_it_is_asked_for(is_asked, caplog):
    records, one = Records(Metrics(), log_requests=True, log_content=is_asked), call()
    records.begin(one)
    one.note("input", "canary")
    records.end(one, grpc.StatusCode.OK)
    [line] = lines(caplog)
    assert line.get("content") == ({"input": ["canary"]} if is_asked else None)


def test_lines_of_callers_that_nobody_knows_are_a_sample(caplog):
    metrics = Metrics()
    records = Records(metrics, log_requests=True)
    for _ in range(50):
        records.end(call(), grpc.StatusCode.UNAUTHENTICATED)
    unknown = len(lines(caplog))
    assert 10 <= unknown < 50
    assert metrics.registry.get_sample_value("tuneserve_log_lines_dropped_total") == 50 - unknown
    for _ in range(50):
        records.end(call(), grpc.StatusCode.PERMISSION_DENIED)
    assert len(lines(caplog)) == unknown + 50


def test_only_a_call_whose_caller_is_known_has_a_span(collecting):
    with collecting() as collector:
        tracing = Tracing(f"http://{collector.address}")
        records = Records(Metrics(), tracing)
        known, unknown = call(), call()
        for one in (known, unknown):
            records.begin(one)
        records.trace(known)
        assert known.trace
        for one in (known, unknown):
            records.end(one, grpc.StatusCode.OK)
        tracing.shutdown(20)
        [span] = collector.all_spans()
    assert span.name == "tuneserve.v1.S/Classify"
