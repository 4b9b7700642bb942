"""Two hundred models, with all that their manifests say: to list, describe and move them holds nobody up."""

import time

import grpc
import pytest

from tuneserve import checkpoint
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.v1 import model_pb2
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

MODELS = 200
LABELS = [f"a label of some length, number {number}" for number in range(77)]
# CPU seconds for each model at the start: two hundred of them take seconds, not minutes. Seen: 0.01.
START = 0.2


@pytest.fixture
async def server(serve_config, make_bert):
    directory = make_bert("ForSequenceClassification", LABELS)
    manifest = checkpoint.describe(directory)
    manifest.label_distribution.update(dict.fromkeys(LABELS, 1 / len(LABELS)))
    metrics = {f"{label}/{kind}": 0.5 for label in LABELS for kind in ("precision", "recall", "f1", "support")}
    manifest.lineage.add(name="finetune", metrics=metrics)
    checkpoint.seal(directory, manifest)
    config = ServerConfig(
        models={f"model-{number}": ModelConfig(path=directory) for number in range(MODELS)},
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        admin_listen="127.0.0.1:0",
    )
    before = time.process_time()
    async with serve_config(config) as served:
        assert time.process_time() - before < START * MODELS
        yield served


async def test_they_are_listed_described_and_moved_without_holding_anybody_up(server, unheld, send):
    service, address = "/tuneserve.v1.ModelService/", server.app.admin_address
    version = server.app.models.latest("model-7").version
    target = model_pb2.AliasTarget(model="model-7", version=version, weight=1)
    alias = model_pb2.SetAliasRequest(alias=model_pb2.Alias(name="model-8", targets=[target]))
    async with unheld():
        for method, message in (
            ("ListModels", model_pb2.ListModelsRequest()),
            ("GetModel", model_pb2.GetModelRequest(model="model-7")),
            ("SetAlias", alias),
        ):
            for _ in range(3):
                code, details = await send(address, service + method, [message.SerializeToString()])
                assert code == grpc.StatusCode.OK, details
    # As any client of gRPC takes it: four megabytes at most.
    listed = await ModelServiceStub(server.admin).ListModels(model_pb2.ListModelsRequest())
    assert (len(listed.models), len(listed.aliases)) == (MODELS, MODELS)
