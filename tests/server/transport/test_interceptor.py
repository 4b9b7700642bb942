"""Around every call: its id and the statuses that errors become."""

import grpc

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
