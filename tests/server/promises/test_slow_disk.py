"""A disk that answers late, as one over a network does, and paths that are long to look up: nobody else waits."""

import time
from pathlib import Path

import grpc
import pytest

from tuneserve.oip import inference_pb2
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tuneserve.server.config import ModelConfig
from tuneserve.server.open_inference import service
from tuneserve.v1 import model_admin_pb2

from ..conftest import loopback

SERVICE = "/tuneserve.v1.ModelAdminService/"
LATE = 0.3


@pytest.fixture
async def server(serve_config, make_bert, make_llama, tmp_path):
    config = loopback(
        {
            "sentiment": make_bert(),
            "chat": ModelConfig(path=make_llama(), max_adapters=2),
        },
        models_root=tmp_path,
    )
    async with serve_config(config) as served:
        yield served


def asking_for(path: str) -> list[tuple[str, bytes]]:
    load = model_admin_pb2.LoadModelRequest(model="new", path=path)
    adapter = model_admin_pb2.LoadAdapterRequest(model="chat", adapter="a", path=path)
    return [("LoadModel", load.SerializeToString()), ("LoadAdapter", adapter.SerializeToString())]


@pytest.mark.parametrize("index", [0, 1], ids=["LoadModel", "LoadAdapter"])
@pytest.mark.parametrize("operation", ["resolve", "is_dir"])
async def test_a_late_disk_holds_nobody_up(server, soon, send, tmp_path, monkeypatch, operation, index):
    at_once, asked = getattr(Path, operation), []

    def late(self, *arguments, **options):
        if self.is_relative_to(tmp_path):
            asked.append(self)
            time.sleep(LATE)
        return at_once(self, *arguments, **options)

    monkeypatch.setattr(Path, operation, late)
    method, message = asking_for("nothing")[index]
    code, details = await soon(lambda: send(server.app.admin_address, SERVICE + method, [message]), operation)
    assert asked
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("path: is not a directory below the server's models_root")


@pytest.mark.parametrize("index", [0, 1], ids=["LoadModel", "LoadAdapter"])
@pytest.mark.parametrize("path", ["a/" * 2_000_000, "../" * 1_000_000, "a/" * 2047], ids=["folders", "parents", "some"])
async def test_a_long_path_holds_nobody_up(server, soon, send, path, index):
    method, message = asking_for(path)[index]
    code, details = await soon(lambda: send(server.app.admin_address, SERVICE + method, [message], 10), method)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("path: is not a directory below the server's models_root")


async def test_the_servers_version_is_not_read_for_each_call(server, monkeypatch):
    monkeypatch.delattr(service, "version")
    stub = GRPCInferenceServiceStub(server.channel)
    assert (await stub.ServerMetadata(inference_pb2.ServerMetadataRequest())).version
