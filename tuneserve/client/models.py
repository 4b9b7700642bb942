"""The calls about the served models."""

from tuneserve.client import answers, results
from tuneserve.client.call import Call
from tuneserve.v1 import model_pb2
from tuneserve.v1.model_pb2_grpc import ModelServiceStub


def list_models(page_token: str, timeout: float | None) -> Call[tuple[list[results.Model], str]]:
    """One page of all models."""
    request = model_pb2.ListModelsRequest(page_token=page_token)
    return Call(ModelServiceStub, "ListModels", request, answers.models, timeout)


def list_aliases(page_token: str, timeout: float | None) -> Call[tuple[list[results.Alias], str]]:
    """One page of all aliases."""
    request = model_pb2.ListAliasesRequest(page_token=page_token)
    return Call(ModelServiceStub, "ListAliases", request, answers.aliases, timeout)


def watch_model(model: str, *, timeout: float | None = None) -> Call[results.Model]:
    """Follows the loading of a version: yields its state at once, and again at each change.

        for model in client.watch_model(loaded.id):
            print(model.state, model.load_step)

    The loop ends with the first state that is not loading. Leaving it early ends the call, not the loading. `model`:
    NAME@VERSION, or a name that stands for one version. `timeout`: seconds for the whole call; no limit if None.
    Iterating raises CallError.
    """
    request = model_pb2.WatchModelRequest(model=model)
    return Call(ModelServiceStub, "WatchModel", request, answers.model, timeout, is_endless=True)
