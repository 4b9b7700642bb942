"""The gRPC ports, and the services of each."""

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from tuneserve.errors import UserError
from tuneserve.oip import inference_pb2, inference_pb2_grpc
from tuneserve.server.answer.service import AnswerService
from tuneserve.server.api.classification import ClassificationService
from tuneserve.server.api.embedding import EmbeddingService
from tuneserve.server.api.generation import GenerationService
from tuneserve.server.api.model_admin_service import ModelAdminService
from tuneserve.server.api.model_service import ModelService
from tuneserve.server.config import ServerConfig, host_and_port
from tuneserve.server.feedback.service import FeedbackService
from tuneserve.server.models.administration import Operations
from tuneserve.server.models.aliases import Models
from tuneserve.server.models.health import (
    ANSWER_SERVICE,
    FEEDBACK_SERVICE,
    HEALTH_SERVICE,
    MODEL_SERVICES,
    MONITOR_SERVICE,
    Health,
    HealthServicer,
)
from tuneserve.server.models.tasks import TASKS
from tuneserve.server.monitor.monitors import Monitors
from tuneserve.server.monitor.service import MonitorService
from tuneserve.server.open_inference.service import InferenceService
from tuneserve.server.transport import connections
from tuneserve.server.transport.accepting import Server, Services
from tuneserve.v1 import (
    answer_pb2_grpc,
    classification_pb2_grpc,
    embedding_pb2_grpc,
    feedback_pb2_grpc,
    generation_pb2_grpc,
    model_admin_pb2_grpc,
    model_pb2_grpc,
    monitor_pb2_grpc,
)

_INFERENCE_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


def public(
    services: Services,
    models: Models,
    answers: AnswerService,
    monitors: Monitors,
    feedback: FeedbackService,
    operations: Operations,
    health: Health,
    config: ServerConfig,
) -> Server:
    """Returns the server of the callers' port, and adds all services to `services`."""
    most = connections.within_memory(connections.within_files(config.max_connections), config.max_streams)
    options = connections.options(config, most, config.processes > 1)
    _add_models(services, models, operations, health)
    classification = ClassificationService(models)
    embedding = EmbeddingService(models)
    generation = GenerationService(models)
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(classification, services)
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(embedding, services)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(generation, services)
    answer_pb2_grpc.add_AnswerServiceServicer_to_server(answers, services)
    monitor_pb2_grpc.add_MonitorServiceServicer_to_server(MonitorService(models, monitors), services)
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(feedback, services)
    inference = InferenceService(models, classification, embedding, generation)
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, services)
    ours = (
        *(task.service for task in TASKS.values()),
        ANSWER_SERVICE,
        FEEDBACK_SERVICE,
        MONITOR_SERVICE,
        *MODEL_SERVICES,
    )
    _reflect(services, *ours, _INFERENCE_SERVICE, HEALTH_SERVICE)
    return Server(services, options)


def admin(services: Services, models: Models, operations: Operations, health: Health, config: ServerConfig) -> Server:
    """Returns the server of the administrators' port, and adds to `services` those for models and health."""
    options = connections.options(config, connections.MOST_BESIDE, config.processes > 1)
    _add_models(services, models, operations, health)
    _reflect(services, *MODEL_SERVICES, HEALTH_SERVICE)
    return Server(services, options)


def health_only(servicer: HealthServicer, config: ServerConfig) -> Server:
    """Returns the server of the probes' port, with health alone."""
    idle = min(config.max_connection_idle_seconds, connections.PROBE_SECONDS)
    probed = config.model_copy(update={"max_connection_idle_seconds": idle})
    options = connections.options(probed, connections.MOST_BESIDE)
    services = Services()
    servicer.add_to(services)
    return Server(services, options)


def bind(
    server: Server, address: str, key: str, credentials: grpc.ServerCredentials | None = None, shared: bool = False
) -> str:
    """Binds the server to an address, and returns it as host:port. Raises UserError naming the setting."""
    host, port = host_and_port(address)
    # gRPC is satisfied with one address of a name, even if another program uses the port at the other addresses.
    for one in connections.sockets(address, key, shared):
        one.close()
    try:
        add = server.port.add_insecure_port
        port = server.port.add_secure_port(address, credentials) if credentials else add(address)
    except RuntimeError:
        raise UserError(f"{key}: can't bind {address}", "another program has the port: choose another") from None
    server.crowd.port = port
    return connections.shown(host, port)


def _add_models(services: Services, models: Models, operations: Operations, health: Health) -> None:
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(models), services)
    model_admin_pb2_grpc.add_ModelAdminServiceServicer_to_server(ModelAdminService(models, operations), services)
    health.servicer.add_to(services)


def _reflect(services: Services, *names: str) -> None:
    servicer = reflection.aio.ReflectionServicer((*sorted(set(names)), reflection.SERVICE_NAME))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, services)  # type: ignore[no-untyped-call]
