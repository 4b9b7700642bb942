"""Spans, as a real collector receives them over OTLP."""

import json
import logging
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1 import trace_pb2

from tuneserve.server.call.context import Call, Stage
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.call.tracing import Tracing
from tuneserve.server.metrics import Metrics
from tuneserve.v1 import classification_pb2, classification_pb2_grpc

from ..conftest import loopback

SERVICE = "tuneserve.v1.ClassificationService"
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector(collecting):
    with collecting() as collector:
        yield collector


def call(traceparent: str = "", **metadata: str) -> Call:
    if traceparent:
        metadata["traceparent"] = traceparent
    return Call("req-1", "Classify", Tenant("acme"), {**metadata, "note": "canary-metadata"}, Metrics())


def attributes(span: trace_pb2.Span) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def traced(collector, one: Call, code: str = "OK") -> dict[str, trace_pb2.Span]:
    """Sends a call's spans and returns what arrived."""
    tracing = Tracing(f"http://{collector.address}")
    tracing.start(one, SERVICE)
    tracing.end(one, code)
    tracing.shutdown(20)
    return collector.spans()


def test_a_call_and_its_stages(collector):
    one = call(f"00-{TRACE_ID}-{PARENT_ID}-01", tracestate="vendor=1")
    one.model, one.version, one.prompt_tokens, one.completion_tokens = "reviews", "0123456789ab", 12, 3
    second = 1_000_000_000
    begin = one.started_ns
    one.stages += [Stage("queue", begin + 7, begin + second), Stage("engine", begin + second, begin + 2 * second)]
    spans = traced(collector, one)

    assert spans.keys() == {f"{SERVICE}/Classify", "queue", "engine"}
    server = spans[f"{SERVICE}/Classify"]
    assert server.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert server.trace_id.hex() == TRACE_ID
    assert server.parent_span_id.hex() == PARENT_ID
    assert server.trace_state == "vendor=1"
    assert server.start_time_unix_nano == begin < server.end_time_unix_nano
    assert attributes(server) == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "Classify",
        "rpc.grpc.status_code": 0,
        "tuneserve.request_id": "req-1",
        "tuneserve.tenant": "acme",
        "tuneserve.model.version": "0123456789ab",
        "gen_ai.request.model": "reviews",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 3,
    }
    assert server.status.code == trace_pb2.Status.STATUS_CODE_UNSET
    for stage in one.stages:
        span = spans[stage.name]
        assert (span.trace_id, span.parent_span_id) == (server.trace_id, server.span_id)
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (stage.start_ns, stage.end_ns)
        assert span.kind == trace_pb2.Span.SPAN_KIND_INTERNAL

    # What the engine gets makes its spans children of ours.
    assert one.trace == {"traceparent": f"00-{TRACE_ID}-{server.span_id.hex()}-01", "tracestate": "vendor=1"}
    assert one.ticket().trace == one.trace

    [resource] = collector.received
    names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert names["service.name"] == "tuneserve"
    assert b"canary" not in resource.SerializeToString()


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{'0' * 32}-{PARENT_ID}-01", f"00-{TRACE_ID}-xyz-01"])
def test_a_call_without_a_trace_starts_one(collector, traceparent):
    [server] = traced(collector, call(traceparent)).values()
    assert not server.parent_span_id
    assert server.trace_id.hex() not in ("0" * 32, TRACE_ID)


def test_a_caller_that_does_not_sample_is_not_traced(collector):
    one = call(f"00-{TRACE_ID}-{PARENT_ID}-00")
    one.stages.append(Stage("queue", 1, 2))
    assert not traced(collector, one)
    # The engine is told the same.
    assert one.trace["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert one.trace["traceparent"].endswith("-00")


@pytest.mark.parametrize(
    ("code", "number", "is_fault"),
    [("INTERNAL", 13, True), ("UNAVAILABLE", 14, True), ("INVALID_ARGUMENT", 3, False), ("CANCELLED", 1, False)],
)
def test_only_the_servers_faults_are_errors(collector, code, number, is_fault):
    [server] = traced(collector, call(), code).values()
    expected = trace_pb2.Status.STATUS_CODE_ERROR if is_fault else trace_pb2.Status.STATUS_CODE_UNSET
    assert server.status.code == expected
    assert attributes(server)["rpc.grpc.status_code"] == number
    assert attributes(server).get("error.type") == (code if is_fault else None)
    assert "gen_ai.request.model" not in attributes(server)


def test_calls_side_by_side_keep_their_own_spans(collector):
    tracing = Tracing(f"http://{collector.address}")
    ones = [Call("same-id", f"Method{index}", Tenant("acme"), {}, Metrics()) for index in range(4)]
    for one in ones:
        tracing.start(one, SERVICE)
    for one in reversed(ones):
        tracing.end(one, "OK")
    tracing.shutdown(20)
    spans = collector.spans()
    for one in ones:
        assert one.trace["traceparent"].split("-")[2] == spans[f"{SERVICE}/{one.method}"].span_id.hex()
    assert not tracing._spans


def test_shutdown_does_not_wait_for_a_collector_that_hangs(collector):
    collector.answers.clear()
    tracing = Tracing(f"http://{collector.address}")
    one = call()
    tracing.start(one, SERVICE)
    tracing.end(one, "OK")
    tracing.shutdown(0.5)
    # Nobody has answered, and the library alone would have waited for its request's deadline.
    assert collector.asked.wait(20)
    assert collector.context is not None
    assert collector.context.time_remaining() > 0
    assert not collector.received


def test_calls_go_on_without_a_collector():
    tracing = Tracing("http://127.0.0.1:1")
    for _ in range(3):
        one = call()
        tracing.start(one, SERVICE)
        tracing.end(one, "OK")
        assert one.trace
    tracing.shutdown(0.1)


async def test_a_real_call_is_traced_logged_and_timed(collector, serve_config, make_bert, caplog):
    config = loopback({"sentiment": make_bert()}, otlp_endpoint=f"http://{collector.address}")
    request = classification_pb2.ClassifyRequest(model="sentiment", inputs=[{"text": "good canary"}])
    sent = (("x-request-id", "abc"), ("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"))
    with caplog.at_level(logging.INFO):
        async with serve_config(config) as served:
            stub = classification_pb2_grpc.ClassificationServiceStub(served.channel)
            answering = stub.Classify(request, metadata=sent)
            answer = await answering
            trailing = dict(await answering.trailing_metadata())
            [ticket] = [ticket for ticket in served.engines["sentiment"].tickets if ticket.request_id.startswith("abc")]

    spans = collector.spans()
    server = spans[f"{SERVICE}/Classify"]
    assert spans.keys() == {f"{SERVICE}/Classify", "tokenize", "queue", "engine"}
    assert server.trace_id.hex() == TRACE_ID
    assert attributes(server)["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens > 0
    assert ticket.trace["traceparent"] == f"00-{TRACE_ID}-{server.span_id.hex()}-01"
    assert "canary" not in str(collector.received)

    timing = [part.split(";dur=") for part in trailing["server-timing"].split(", ")]
    assert [name for name, _ in timing] == ["queue", "tokenize", "engine"]
    [line] = [json.loads(record.getMessage()) for record in caplog.records if record.name == "tuneserve.requests"]
    assert (line["request_id"], line["model"], line["status"]) == ("abc", "sentiment", "OK")
    assert line["prompt_tokens"] == answer.usage.prompt_tokens
    assert line["ms"] >= max(line[f"{name}_ms"] for name, _ in timing)
    assert all(float(value) == line[f"{name}_ms"] for name, value in timing)
    assert "canary" not in caplog.text


def test_nothing_is_global(collector):
    before = trace.get_tracer_provider()
    traced(collector, call())
    assert trace.get_tracer_provider() is before


def test_nothing_is_imported_without_an_endpoint():
    code = (
        "import sys; import tuneserve.server.call.tracing; assert not [m for m in sys.modules if 'opentelemetry' in m]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
