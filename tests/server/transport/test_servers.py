"""The ports: which services each has, and what is not bound."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tuneserve.errors import UserError
from tuneserve.server.app import App
from tuneserve.v1 import model_pb2
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..conftest import loopback


async def test_a_port_in_use_is_refused_not_shared(served, make_bert):
    with pytest.raises(UserError, match="listen: can't bind"):
        App(loopback({"sentiment": make_bert()}, listen=served.app.address))
    with pytest.raises(UserError, match="metrics_listen: can't bind"):
        App(loopback({"sentiment": make_bert()}, metrics_listen=served.app.metrics_address))


def services(address: str) -> list[str]:
    with grpc.insecure_channel(address) as channel:
        return sorted(ProtoReflectionDescriptorDatabase(channel).get_services())


async def test_each_port_has_its_own_services(served):
    beside = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    models = ["tuneserve.v1.ModelAdminService", "tuneserve.v1.ModelService"]
    names = ("Answer", "Classification", "Embedding", "Feedback", "Generation", "Monitor")
    calls = [f"tuneserve.v1.{name}Service" for name in names]
    everything = sorted([*beside, "inference.GRPCInferenceService", *models, *calls])
    assert await asyncio.to_thread(services, served.app.address) == everything
    assert await asyncio.to_thread(services, served.app.admin_address) == sorted([*beside, *models])


async def test_the_probes_port_has_health_alone(serve_config, make_bert, refused):
    config = loopback({"sentiment": make_bert()}, health_listen="127.0.0.1:0")
    async with serve_config(config) as served, grpc.aio.insecure_channel(served.app.health_address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await refused(
            ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest()), grpc.StatusCode.UNIMPLEMENTED
        )
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(services, served.app.health_address)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
