"""A crowd keeps its calls under way, and the caller beside it is counted apart."""

import asyncio

import grpc
import pytest

from tuneserve.benchmarks.serving.crowd import measure
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import classification_pb2_grpc


class Server(classification_pb2_grpc.ClassificationServiceServicer):
    """Refuses every third call of the crowd."""

    def __init__(self) -> None:
        self.peers: dict[str, set[str]] = {}
        self.calls: dict[str, int] = {}
        self.running = self.most = 0

    async def Classify(self, request: pb.ClassifyRequest, context) -> pb.ClassifyResponse:
        key = dict(context.invocation_metadata())["authorization"]
        self.peers.setdefault(key, set()).add(context.peer())
        self.calls[key] = self.calls.get(key, 0) + 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.02)
        finally:
            self.running -= 1
        if key == "Bearer many" and self.calls[key] % 3 == 0:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return pb.ClassifyResponse()


@pytest.mark.parametrize("calls", [0, 120])
async def test_a_caller_beside_a_crowd(monkeypatch, calls):
    monkeypatch.setenv("TUNESERVE_KEY", "one")
    monkeypatch.setenv("TUNESERVE_CROWD_KEY", "many")
    servicer, server = Server(), grpc.aio.server()
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        found = await asyncio.to_thread(measure, f"127.0.0.1:{port}", "m", calls, 5.0)
    finally:
        await server.stop(None)
    assert found["caller_calls"] == servicer.calls["Bearer one"] > 0
    assert found["caller_errors"] == {}
    assert 0 < found["caller_ms_p50"] <= found["caller_ms_p99"] <= found["caller_ms_max"]
    if calls:
        assert len(servicer.peers["Bearer many"] - {""}) == 2  # some are gone already
        assert servicer.most > calls / 2
        assert found["crowd"]["RESOURCE_EXHAUSTED"] == pytest.approx(found["crowd"]["OK"] / 2, rel=0.2)
    else:
        assert found["crowd"] == {}
