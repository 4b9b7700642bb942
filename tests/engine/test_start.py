"""A start that is given up leaves no engine process behind, and the same model can be loaded after it."""

import time

import grpc
import psutil
import pytest
import yaml

from tuneserve import samples
from tuneserve.server.engine import processes as engine_processes
from tuneserve.serving import Server, launched
from tuneserve.v1.model_admin_pb2 import LoadModelRequest
from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceStub

pytestmark = pytest.mark.engine


def engines(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [one for one in children if "resource_tracker" not in " ".join(one.cmdline())]


def test_a_load_that_is_given_up_leaves_no_process(tmp_path):
    model = samples.embedding_model()
    config = tmp_path / "server.yaml"
    config.write_text(yaml.safe_dump({"admin_listen": "127.0.0.1:0", "models_root": str(model.parent)}))
    load = LoadModelRequest(model="vectors", path=model.name)
    with launched("--config", str(config)) as server, grpc.insecure_channel(server.addresses.admin) as channel:
        stub = ModelAdminServiceStub(channel)
        call = stub.LoadModel.future(load)
        deadline = time.monotonic() + 300
        while not (begun := engines(server)):
            assert not call.done(), call.exception()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        call.cancel()
        engine_processes.wait_for_end(begun, 60)
        assert not engines(server)
        assert stub.LoadModel(load).model.version
        assert len(engines(server)) == 1
