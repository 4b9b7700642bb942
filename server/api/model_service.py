"""ModelService: describes what is served."""

from collections.abc import AsyncIterator
from typing import Any

from tuneserve.server.api.paging import page
from tuneserve.server.call.context import current
from tuneserve.server.models.aliases import Models
from tuneserve.v1 import model_pb2 as pb
from tuneserve.v1.model_pb2_grpc import ModelServiceServicer


class ModelService(ModelServiceServicer):
    """Names, labels, lineage, metrics and limits. Also answers while models load."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        """See model.proto."""
        allowed = [model for model in self._models if current().tenant.may_use(model.name)]
        found, token = page(
            allowed, lambda model: f"{model.name}\n{model.version}", request.page_size, request.page_token
        )
        return pb.ListModelsResponse(models=[model.to_proto() for model in found], next_page_token=token)

    async def WatchModel(self, request: pb.WatchModelRequest, context: Any) -> AsyncIterator[pb.WatchModelResponse]:
        """See model.proto."""
        async for seen in self._models.only(request.model).watch():
            yield pb.WatchModelResponse(model=seen)

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Any) -> pb.ListAliasesResponse:
        """See model.proto."""
        found, token = page(self._models.aliases(), lambda alias: alias.name, request.page_size, request.page_token)
        return pb.ListAliasesResponse(aliases=found, next_page_token=token)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """See model.proto."""
        model, *others = self._models.all(request.model)
        return pb.GetModelResponse(
            model=model.to_proto(),
            checkpoint=model.manifest,
            others=[pb.Version(model=other.to_proto(), checkpoint=other.manifest) for other in others],
        )
