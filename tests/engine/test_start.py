"""A start that is given up leaves no engine process behind, and the same model can be loaded after it. An engine whose
fork server is gone is started again.
"""

import re
import time
from contextlib import suppress

import grpc
import psutil
import pytest
import yaml

from tuneserve import samples
from tuneserve.server.engine import processes as engine_processes
from tuneserve.serving import Server, launched
from tuneserve.v1.embedding_pb2 import EmbedRequest
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.model_admin_pb2 import CancelLoadRequest, LoadModelRequest
from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceStub
from tuneserve.v1.model_pb2 import LOAD_STEP_WARMING_UP, MODEL_STATE_READY, WatchModelRequest
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

pytestmark = pytest.mark.engine


def engines(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [one for one in children if not re.search("resource_tracker|forkserver", " ".join(one.cmdline()))]


def answers(channel: grpc.Channel) -> bool:
    with suppress(grpc.RpcError):
        return bool(EmbeddingServiceStub(channel).Embed(EmbedRequest(model="vectors", texts=["good"])).results)
    return False


def test_a_load_that_is_cancelled_leaves_no_process(tmp_path):
    model = samples.embedding_model()
    config = tmp_path / "server.yaml"
    config.write_text(yaml.safe_dump({"admin_listen": "127.0.0.1:0", "models_root": str(model.parent)}))
    load = LoadModelRequest(model="vectors", path=model.name)
    with launched("--config", str(config)) as server, grpc.insecure_channel(server.addresses.admin) as channel:
        stub = ModelAdminServiceStub(channel)
        model = stub.LoadModel(load).model
        deadline = time.monotonic() + 300
        while not (begun := engines(server)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stub.CancelLoad(CancelLoadRequest(model=model.id), timeout=60)
        engine_processes.wait_for_end(begun, 60)
        assert not engines(server)
        stub.LoadModel(load)
        *before, last = ModelServiceStub(channel).WatchModel(WatchModelRequest(model=model.id), timeout=300)
        assert LOAD_STEP_WARMING_UP in {update.model.load_step for update in before}
        assert last.model.state == MODEL_STATE_READY
        assert len(engines(server)) == 1


def test_an_engine_whose_fork_server_is_gone_is_started_again():
    """Its end would not be noticed any more."""
    with launched("--model", f"vectors={samples.embedding_model()}") as server:
        before = engines(server)
        [forking] = [one for one in psutil.Process(server.process.pid).children() if "forkserver" in str(one.cmdline())]
        assert [one.parent() for one in before] == [forking]
        forking.kill()
        engine_processes.wait_for_end(before, 120)
        assert not any(map(engine_processes.runs, before))
        with grpc.insecure_channel(server.addresses.grpc) as channel:
            deadline = time.monotonic() + 300
            while not answers(channel):
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert len(engines(server)) == 1
