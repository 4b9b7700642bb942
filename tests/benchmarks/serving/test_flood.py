"""Strangers below gRPC: their calls are calls, and one that was hung up on comes again."""

import asyncio
import time

import grpc
import pytest

from tuneserve.benchmarks.serving.flood import Flood, measure
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import classification_pb2_grpc


class Server(classification_pb2_grpc.ClassificationServiceServicer):
    """Answers whoever shows a key."""

    def __init__(self) -> None:
        self.strangers = self.callers = 0

    async def Classify(self, request: pb.ClassifyRequest, context) -> pb.ClassifyResponse:
        if "authorization" in dict(context.invocation_metadata()):
            self.callers += 1
            return pb.ClassifyResponse()
        self.strangers += 1
        return await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no key")


@pytest.fixture
async def served():
    servicer, server = Server(), grpc.aio.server()
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(servicer, server)
    # A call without a message reaches no unary handler of gRPC's.
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, port
    await server.stop(None)


async def test_a_caller_beside_strangers(served):
    servicer, port = served
    found = await asyncio.to_thread(measure, f"127.0.0.1:{port}", "m", 2, 20_000.0, 5.0)
    assert found["caller_calls"] == servicer.callers > 0
    assert found["caller_errors"] == {}
    assert 0 < found["caller_ms_p50"] <= found["caller_ms_max"]
    assert found["stranger_connections"] == 2
    assert found["stranger_calls"] > 100
    # Two seconds of so many bytes a second, in calls of 15 bytes but for the first of each connection.
    assert found["stranger_bytes"] < 20_000 * 4


async def test_the_rate_is_kept_and_connections_are_made_anew():
    connections = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(b"\0\0\0\x04\0\0\0\0\0")
        await reader.read(100)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    flood = Flood(server.sockets[0].getsockname(), 1000.0, time.monotonic() + 1.0)
    await asyncio.to_thread(flood.run)
    server.close()
    assert flood.connections == connections > 1
