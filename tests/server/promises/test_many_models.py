"""Two hundred models, with all that their manifests say: to list, describe and move them holds nobody up."""

import time

import grpc
import pytest

from tuneserve import checkpoint
from tuneserve.oip import inference_pb2
from tuneserve.server.config import ModelConfig
from tuneserve.v1 import model_admin_pb2, model_pb2
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..conftest import loopback

MODELS = 200
LABELS = [f"a label of some length, number {number}" for number in range(77)]
# CPU seconds for each model at the start: two hundred of them take seconds, not minutes. Seen: 0.01.
START = 0.2


@pytest.fixture
async def server(serve_config, make_bert):
    directory = make_bert(labels=LABELS)
    manifest = checkpoint.describe(directory)
    manifest.label_distribution.update(dict.fromkeys(LABELS, 1 / len(LABELS)))
    metrics = {f"{label}/{kind}": 0.5 for label in LABELS for kind in ("precision", "recall", "f1", "support")}
    manifest.lineage.add(name="finetune", metrics=metrics)
    checkpoint.seal(directory, manifest)
    config = loopback({f"model-{number}": ModelConfig(path=directory) for number in range(MODELS)})
    before = time.process_time()
    async with serve_config(config) as served:
        assert time.process_time() - before < START * MODELS
        yield served


async def test_they_are_listed_described_and_moved_without_holding_anybody_up(server, soon, send):
    package, inference = "/tuneserve.v1.", "/inference.GRPCInferenceService/"
    version = server.app.models.latest("model-7").version
    target = model_pb2.AliasTarget(model=f"model-7@{version}", weight=1)
    alias = model_admin_pb2.SetAliasRequest(alias=model_pb2.Alias(name="model-8", targets=[target]))
    for path, message in (
        (f"{package}ModelService/ListModels", model_pb2.ListModelsRequest()),
        (f"{package}ModelService/ListModels", model_pb2.ListModelsRequest(page_size=1000)),
        (f"{package}ModelService/ListAliases", model_pb2.ListAliasesRequest(page_size=1000)),
        (f"{package}ModelService/GetModel", model_pb2.GetModelRequest(model="model-7")),
        (f"{package}ModelService/WatchModel", model_pb2.WatchModelRequest(model="model-7")),
        (f"{package}ModelAdminService/SetAlias", alias),
        (f"{inference}ServerReady", inference_pb2.ServerReadyRequest()),
        (f"{inference}ModelMetadata", inference_pb2.ModelMetadataRequest(name="model-7")),
    ):
        address = server.app.address if path.startswith(inference) else server.app.admin_address
        data = message.SerializeToString()
        for _ in range(3):
            code, details = await soon(lambda to=address, path=path, data=data: send(to, path, [data]), path)
            assert code == grpc.StatusCode.OK, details
    # As any client of gRPC takes it: four megabytes at most.
    stub = ModelServiceStub(server.admin)
    listed = await stub.ListModels(model_pb2.ListModelsRequest(page_size=1000))
    aliases = await stub.ListAliases(model_pb2.ListAliasesRequest(page_size=1000))
    assert (len(listed.models), len(aliases.aliases)) == (MODELS, MODELS)
    # A hundred at a time, unless told.
    found, request = list[str](), model_pb2.ListModelsRequest()
    while not found or request.page_token:
        page = await stub.ListModels(request)
        assert len(page.models) <= 100
        found += [model.id for model in page.models]
        request.page_token = page.next_page_token
    assert found == [model.id for model in listed.models]
