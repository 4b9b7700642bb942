"""ModelService: what is served, and for administrators, changing it."""

from typing import Any

from tuneserve.server import config
from tuneserve.server.call.context import current
from tuneserve.server.call.errors import InvalidInput, NotAllowed
from tuneserve.server.models.administration import Operations
from tuneserve.server.models.registry import Models
from tuneserve.v1 import model_pb2 as pb
from tuneserve.v1.model_pb2_grpc import ModelServiceServicer


class ModelService(ModelServiceServicer):
    """Names, labels, lineage, metrics and limits. Answers while models load, too."""

    def __init__(self, models: Models, operations: Operations) -> None:
        self._models = models
        self._operations = operations

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        """See model.proto."""
        tenant = current().tenant
        return pb.ListModelsResponse(
            models=[model.to_proto() for model in self._models if tenant.may_use(model.name)],
            aliases=self._models.aliases(),
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """See model.proto."""
        model, *others = self._models.all(request.model)
        return pb.GetModelResponse(
            model=model.to_proto(),
            checkpoint=model.manifest,
            others=[pb.Version(model=other.to_proto(), checkpoint=other.manifest) for other in others],
        )

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> pb.LoadModelResponse:
        """See model.proto."""
        _require_administrator()
        return pb.LoadModelResponse(model=(await self._operations.load(request)).to_proto())

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Any) -> pb.UnloadModelResponse:
        """See model.proto."""
        _require_administrator()
        await self._operations.unload(request.model, request.version)
        return pb.UnloadModelResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:
        """See model.proto."""
        _require_administrator()
        alias = request.alias
        if not config.is_name(alias.name):
            raise InvalidInput("alias.name", f"is not a name: {config.A_NAME}")
        return pb.SetAliasResponse(alias=await self._operations.set_alias(alias, request.unload_unused))

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Any) -> pb.LoadAdapterResponse:
        """See model.proto."""
        _require_administrator()
        if not request.adapter:
            raise InvalidInput("adapter", "is empty; a name is needed")
        version = await self._operations.load_adapter(self._models.only(request.model), request.adapter, request.path)
        return pb.LoadAdapterResponse(adapter=pb.Adapter(name=request.adapter, version=version))

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Any) -> pb.UnloadAdapterResponse:
        """See model.proto."""
        _require_administrator()
        await self._models.only(request.model).remove_adapter(request.adapter)
        return pb.UnloadAdapterResponse()


def _require_administrator() -> None:
    if current().tenant.role != "admin":
        raise NotAllowed("this call is for administrators: use admin_listen, or a key of role admin")
