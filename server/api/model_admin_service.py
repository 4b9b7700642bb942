"""ModelAdminService: changes what is served; only for administrators."""

from typing import Any

from tuneserve.server.call.context import current
from tuneserve.server.call.errors import NotAllowed
from tuneserve.server.models.administration import Operations
from tuneserve.server.models.aliases import Models
from tuneserve.v1 import model_admin_pb2 as pb
from tuneserve.v1 import model_pb2
from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceServicer


class ModelAdminService(ModelAdminServiceServicer):
    """See model_admin.proto."""

    def __init__(self, models: Models, operations: Operations) -> None:
        self._models = models
        self._operations = operations

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> pb.LoadModelResponse:
        """See model_admin.proto."""
        self._check()
        return pb.LoadModelResponse(model=(await self._operations.load(request)).to_proto())

    async def CancelLoad(self, request: pb.CancelLoadRequest, context: Any) -> pb.CancelLoadResponse:
        """See model_admin.proto."""
        self._check()
        await self._operations.cancel_load(request.model)
        return pb.CancelLoadResponse()

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Any) -> pb.UnloadModelResponse:
        """See model_admin.proto."""
        self._check()
        await self._operations.unload(request.model)
        return pb.UnloadModelResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:
        """See model_admin.proto."""
        self._check()
        return pb.SetAliasResponse(alias=await self._operations.set_alias(request.alias, request.unload_unused))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Any) -> pb.DeleteAliasResponse:
        """See model_admin.proto."""
        self._check()
        await self._operations.delete_alias(request.name, request.etag, request.unload_unused)
        return pb.DeleteAliasResponse()

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Any) -> pb.LoadAdapterResponse:
        """See model_admin.proto."""
        self._check()
        version = await self._operations.load_adapter(self._models.only(request.model), request.adapter, request.path)
        return pb.LoadAdapterResponse(adapter=model_pb2.Adapter(name=request.adapter, version=version))

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Any) -> pb.UnloadAdapterResponse:
        """See model_admin.proto."""
        self._check()
        await self._operations.unload_adapter(self._models.only(request.model), request.adapter)
        return pb.UnloadAdapterResponse()

    def _check(self) -> None:
        if current().tenant.role != "admin":
            raise NotAllowed("this call is for administrators: use admin_listen, or a key of role admin")
