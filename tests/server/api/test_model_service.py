"""ModelService over the wire: what is listed, described and watched; and for a tenant, without a wire."""

import grpc
import pytest

from tuneserve.server.api.model_service import ModelService
from tuneserve.server.call import context
from tuneserve.server.call.errors import NotAllowed
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.metrics import Metrics
from tuneserve.v1 import model_pb2
from tuneserve.v1.model_pb2_grpc import ModelServiceStub


async def test_models_are_listed_and_described(served):
    stub = ModelServiceStub(served.channel)
    listed = (await stub.ListModels(model_pb2.ListModelsRequest())).models
    assert [model.name for model in listed] == ["chat", "ner", "sentiment", "topics", "vectors"]
    assert all(model.state == model_pb2.MODEL_STATE_READY for model in listed)
    described = await stub.GetModel(model_pb2.GetModelRequest(model="sentiment"))
    assert list(described.model.labels) == ["neg", "pos"]
    assert described.model.limits.max_length == 32
    assert described.model.limits.max_inputs == 8
    assert len(described.model.version) == 12
    assert described.checkpoint.architecture == "BertForSequenceClassification"


@pytest.mark.parametrize("what", ["models", "aliases"])
async def test_lists_have_pages(served, refused, what):
    stub = ModelServiceStub(served.channel)
    ask, request = {
        "models": (stub.ListModels, model_pb2.ListModelsRequest),
        "aliases": (stub.ListAliases, model_pb2.ListAliasesRequest),
    }[what]
    found, token = [], ""
    for _ in range(3):
        answer = await ask(request(page_size=2, page_token=token))
        found += [one.name for one in getattr(answer, what)]
        token = answer.next_page_token
    assert (found, token) == (["chat", "ner", "sentiment", "topics", "vectors"], "")
    await refused(ask(request(page_size=-1)), grpc.StatusCode.INVALID_ARGUMENT)


async def test_who_watches_a_model_that_is_there_hears_of_it_once(served, refused):
    stub = ModelServiceStub(served.channel)
    seen = [one.model async for one in stub.WatchModel(model_pb2.WatchModelRequest(model="chat"))]
    assert [(one.name, one.state) for one in seen] == [("chat", model_pb2.MODEL_STATE_READY)]
    missing = stub.WatchModel(model_pb2.WatchModelRequest(model="nope"))
    await refused(missing.read(), grpc.StatusCode.NOT_FOUND)


async def test_a_tenant_is_told_of_its_own_models(served):
    service = ModelService(served.app.models)
    context.begin(context.Call("req-1", "ListModels", Tenant("acme", models=["ner", "absent"]), {}, Metrics()))
    listed = await service.ListModels(model_pb2.ListModelsRequest(), None)
    aliases = await service.ListAliases(model_pb2.ListAliasesRequest(), None)
    assert [one.name for one in (*listed.models, *aliases.aliases)] == ["ner", "ner"]
    assert (await service.GetModel(model_pb2.GetModelRequest(model="ner"), None)).model.name == "ner"
    for name in ("chat", "nope"):
        with pytest.raises(NotAllowed):
            await service.GetModel(model_pb2.GetModelRequest(model=name), None)
