"""ModelService: what is served."""

from typing import Any

from tuneserve.server.models import Models
from tuneserve.v1 import model_pb2 as pb
from tuneserve.v1.model_pb2_grpc import ModelServiceServicer


class ModelService(ModelServiceServicer):
    """Names, labels, lineage, metrics and limits. Answers while models load, too."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        """See model.proto."""
        return pb.ListModelsResponse(models=[model.to_proto() for model in self._models])

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """See model.proto."""
        model = self._models.get(request.model)
        return pb.GetModelResponse(model=model.to_proto(), checkpoint=model.manifest)
