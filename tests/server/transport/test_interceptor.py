"""Around every call: its id, what stands behind its answer, and the statuses that errors become."""

import re
from types import SimpleNamespace

import grpc
import pytest

from tuneserve.server.transport.accepting import Services
from tuneserve.server.transport.interceptor import CallInterceptor
from tuneserve.v1 import classification_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

GOOD = classification_pb2.ClassifyRequest(model="sentiment", inputs=[classification_pb2.ClassifyInput(text="good")])


async def test_request_id_is_echoed_or_made(served, refused):
    stub = ClassificationServiceStub(served.channel)
    call = stub.Classify(GOOD, metadata=(("x-request-id", "mine-1"),))
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-1"
    call = stub.Classify(GOOD, metadata=(("x-request-id", "no spaces allowed"),))
    await call
    made = dict(await call.trailing_metadata())["x-request-id"]
    assert made != "no spaces allowed"
    bad = classification_pb2.ClassifyRequest(model="nope")
    error = await refused(stub.Classify(bad, metadata=(("x-request-id", "mine-2"),)), grpc.StatusCode.NOT_FOUND)
    assert dict(error.trailing_metadata())["x-request-id"] == "mine-2"
    assert "mine-2" in error.details()


async def test_unknown_errors_never_show_their_text(served, refused, caplog):
    served.engines["sentiment"].broken = RuntimeError("secret /path and prompt")
    stub = ClassificationServiceStub(served.channel)
    error = await refused(stub.Classify(GOOD, metadata=(("x-request-id", "trace-me"),)), grpc.StatusCode.INTERNAL)
    assert "secret" not in error.details()
    assert "trace-me" in error.details()
    assert any("trace-me" in record.message for record in caplog.records)
    served.engines["sentiment"].broken = None
    await stub.Classify(GOOD)


def test_calls_that_are_not_ours_are_left_alone():
    # What is around calls is asked for by none of these.
    interceptor = CallInterceptor(*[None] * 8)
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    assert interceptor.wrap("/grpc.health.v1.Health/Check", handler) is handler
    unknown = SimpleNamespace(method="/tuneserve.v1.ClassificationService/Nothing")
    assert Services(interceptor.wrap).service(unknown) is None


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_stream"])
def test_messages_of_ours_are_bytes_until_their_turn(kind):
    given = getattr(grpc, f"{kind}_rpc_method_handler")(lambda request, context: request, bytes, bytes)
    wrapped = CallInterceptor(*[None] * 8).wrap("/tuneserve.v1.ClassificationService/Classify", given)
    assert (wrapped.request_deserializer, wrapped.response_serializer) == (None, None)
    assert wrapped.request_streaming, "gRPC takes a message in when it is asked for it"
    assert wrapped.response_streaming == given.response_streaming


async def test_answers_and_errors_say_who_gave_them_and_where_their_time_went(served, refused):
    stub = ClassificationServiceStub(served.channel)
    answered = stub.Classify(GOOD)
    await answered
    long = classification_pb2.ClassifyRequest(model="sentiment")
    long.inputs.add(text="film " * 99)
    error = await refused(stub.Classify(long), grpc.StatusCode.INVALID_ARGUMENT)
    version = served.app.models.latest("sentiment").id
    for trailing, stages in (
        (await answered.trailing_metadata(), {"queue", "tokenize", "engine"}),
        (error.trailing_metadata(), {"tokenize"}),
    ):
        found = dict(trailing)
        assert found["x-model-version"] == version
        assert set(re.findall(r"(\w+);dur=", found["server-timing"])) == stages


async def test_a_call_that_reached_no_model_names_none(served, refused):
    bad = classification_pb2.ClassifyRequest(model="nope")
    error = await refused(ClassificationServiceStub(served.channel).Classify(bad), grpc.StatusCode.NOT_FOUND)
    assert not {"x-model-version", "server-timing"} & set(dict(error.trailing_metadata()))
