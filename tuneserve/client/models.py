"""The calls about what is served."""

from tuneserve.client import answers, results
from tuneserve.client.call import Call
from tuneserve.v1 import model_pb2
from tuneserve.v1.model_pb2_grpc import ModelServiceStub


def list_models(page_token: str, timeout: float | None) -> Call[tuple[list[results.Model], str]]:
    """One page of all models."""
    request = model_pb2.ListModelsRequest(page_token=page_token)
    return Call(ModelServiceStub, "ListModels", request, answers.models, timeout)
