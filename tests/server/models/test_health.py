"""What health says: of each service, of each alias and of the whole server."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return response.status


async def test_health_per_service_and_overall(served):
    for service in (
        "",
        "tuneserve.v1.ClassificationService",
        "tuneserve.v1.GenerationService",
        "tuneserve.v1.EmbeddingService",
        "tuneserve.v1.ModelAdminService",
        "tuneserve.v1.ModelService",
        "models/chat",
    ):
        assert await health(served.channel, service) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(served.channel, "nope")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
