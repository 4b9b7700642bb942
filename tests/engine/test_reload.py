"""A server's file changes, and real engines come and go while the process stays."""

import time
from pathlib import Path

import grpc
import pytest
import yaml

from tuneserve import samples
from tuneserve.serving import launched
from tuneserve.v1.embedding_pb2 import EmbedRequest
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.model_pb2 import MODEL_STATE_READY, ListModelsRequest
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from .test_start import engines

pytestmark = pytest.mark.engine


def test_a_changed_file_changes_the_models(tmp_path: Path) -> None:
    model = {"path": str(samples.embedding_model())}
    file = tmp_path / "server.yaml"

    def write(**settings: object) -> None:
        file.with_suffix(".new").write_text(yaml.safe_dump({"reload_models": True, **settings}))
        file.with_suffix(".new").replace(file)

    write(models={"old": model}, aliases={"vectors": {"targets": {"old": 1}}})
    with launched("--config", str(file)) as server, grpc.insecure_channel(server.addresses.grpc) as channel:
        [before] = engines(server)
        write(models={"new": model}, aliases={"vectors": {"targets": {"new": 1}}})
        deadline = time.monotonic() + 300
        while True:
            # No call fails meanwhile.
            EmbeddingServiceStub(channel).Embed(EmbedRequest(model="vectors", texts=["a film"]))
            listed = ModelServiceStub(channel).ListModels(ListModelsRequest()).models
            if [(one.name, one.state) for one in listed] == [("new", MODEL_STATE_READY)] and not before.is_running():
                break
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert len(engines(server)) == 1
