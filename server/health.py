"""What grpc.health.v1 says: per service, per alias and for the whole server.

An alias serves while one of its versions answers: its calls go there then. A service serves while one of its aliases
does, and the server while any does: an engine that fails takes no other model out of service. At start none of them
serves before each model was warmed up.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneserve.server.registry import Models, Route
from tuneserve.v1 import checkpoint_pb2, classification_pb2, embedding_pb2, generation_pb2, model_pb2

_CLASSIFICATION = classification_pb2.DESCRIPTOR.services_by_name["ClassificationService"].full_name
SERVICES: dict[int, str] = {
    checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION: _CLASSIFICATION,
    checkpoint_pb2.TASK_TOKEN_CLASSIFICATION: _CLASSIFICATION,
    checkpoint_pb2.TASK_GENERATION: generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name,
    checkpoint_pb2.TASK_EMBEDDING: embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"].full_name,
}
MODEL_SERVICE = model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
_STATUS = {True: health_pb2.HealthCheckResponse.SERVING, False: health_pb2.HealthCheckResponse.NOT_SERVING}


class Health:
    """The health service, kept in step with the models."""

    def __init__(self, models: Models, names: bool = True) -> None:
        """`names` tells anybody the state of `models/ALIAS`, and with it which aliases there are."""
        self.servicer = _Servicer()
        self._models = models
        self._names = names

    async def publish(self) -> None:
        """Tells the watchers how the models are now."""
        routes = self._models.routes
        of_service: dict[str, list[Route]] = {service: [] for service in SERVICES.values()}
        for route in routes.values():
            of_service[SERVICES[route.task]].append(route)
        serving = {service: _any_serves(of) for service, of in of_service.items()}
        if self._names:
            serving |= {f"models/{alias}": route.serves for alias, route in routes.items()}
        self.servicer.show({"": _any_serves(routes.values()), MODEL_SERVICE: True, **serving})

    async def drain(self) -> None:
        """Says NOT_SERVING for good."""
        self.servicer.end()


def _any_serves(routes: Collection[Route]) -> bool:
    return any(route.serves for route in routes) and not any(route.is_loading for route in routes)


class _Servicer(health_pb2_grpc.HealthServicer):
    """The states, for whoever asks or watches.

    Not the library's own: that one has no way to forget a service, and when one of several watchers of a service
    leaves, it tells the others nothing any more.
    """

    def __init__(self) -> None:
        self._serving: Mapping[str, bool] = {}
        self._changed = asyncio.Event()  # of this state; the next one has another
        self._ended = False

    def show(self, serving: Mapping[str, bool]) -> None:
        """Replaces all states. A service that is not among them is not known any more."""
        if not self._ended:
            self._serving = serving
            self._changed.set()
            self._changed = asyncio.Event()

    def end(self) -> None:
        """No service serves, for good."""
        self.show(dict.fromkeys(self._serving, False))
        self._ended = True

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """See health.proto."""
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=_STATUS[self._serving[request.service]])

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """See health.proto."""
        told = None
        while True:
            changed = self._changed
            serving = self._serving.get(request.service)
            status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN if serving is None else _STATUS[serving]
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
            told = status
            await changed.wait()
