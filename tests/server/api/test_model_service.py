"""ModelService over the wire: what is listed, described and watched, and for whom."""

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
