"""What grpc.health.v1 says: per service, per alias and for the whole server.

A service serves when every model of it that an alias points at does; the server, when all of them do.
"""

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from tuneserve.server.registry import Models
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
        self.servicer = HealthServicer()
        self._models = models
        self._names = names

    async def publish(self) -> None:
        """Tells the watchers how the models are now."""
        states: dict[str, list[bool]] = {"": [], **{service: [] for service in SERVICES.values()}}
        for alias, route in self._models.routes.items():
            ready = [model.is_ready for model, _ in route.targets]
            if self._names:
                states[f"models/{alias}"] = ready
            states[""] += ready
            for service in {SERVICES[model.manifest.task] for model, _ in route.targets}:
                states[service] += ready
        for service, ready in states.items():
            await self.servicer.set(service, _STATUS[bool(ready) and all(ready)])
        await self.servicer.set(MODEL_SERVICE, _STATUS[True])

    async def drain(self) -> None:
        """Says NOT_SERVING for good."""
        await self.servicer.enter_graceful_shutdown()
