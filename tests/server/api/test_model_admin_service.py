"""ModelAdminService over the wire: who may change what is served."""

import grpc

from tuneserve.v1 import model_admin_pb2

from ..conftest import Models


async def test_administration_needs_an_administrator(served, refused):
    stub = Models(served.channel)
    for call in (
        stub.LoadModel(model_admin_pb2.LoadModelRequest(model="sentiment", path="new")),
        stub.CancelLoad(model_admin_pb2.CancelLoadRequest(model="sentiment")),
        stub.UnloadModel(model_admin_pb2.UnloadModelRequest(model="sentiment")),
        stub.SetAlias(model_admin_pb2.SetAliasRequest()),
        stub.DeleteAlias(model_admin_pb2.DeleteAliasRequest()),
        stub.LoadAdapter(model_admin_pb2.LoadAdapterRequest(model="chat")),
        stub.UnloadAdapter(model_admin_pb2.UnloadAdapterRequest(model="chat")),
    ):
        await refused(call, grpc.StatusCode.PERMISSION_DENIED)


async def test_an_adapter_needs_a_name(served, refused):
    stub = Models(served.admin)
    for name in ("", "a" * 64, "../polite"):
        unnamed = stub.LoadAdapter(model_admin_pb2.LoadAdapterRequest(model="chat", adapter=name, path="polite"))
        error = await refused(unnamed, grpc.StatusCode.INVALID_ARGUMENT)
        assert error.details().startswith("adapter: is not a name: a name is 1 to 63 letters"), name
    absent = stub.UnloadAdapter(model_admin_pb2.UnloadAdapterRequest(model="chat", adapter="absent"))
    await refused(absent, grpc.StatusCode.NOT_FOUND)
