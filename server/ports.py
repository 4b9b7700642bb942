"""The gRPC ports: which services each of them has."""

import logging
import resource

import grpc
from grpc_reflection.v1alpha import reflection

from tuneserve.errors import UserError
from tuneserve.oip import inference_pb2, inference_pb2_grpc
from tuneserve.server.catalog import ModelService
from tuneserve.server.classification import ClassificationService
from tuneserve.server.config import host_and_port
from tuneserve.server.embedding import EmbeddingService
from tuneserve.server.generation import GenerationService
from tuneserve.server.health import HEALTH_SERVICE, MODEL_SERVICE, SERVICES, Health
from tuneserve.server.interceptors import CallInterceptor
from tuneserve.server.open_inference import InferenceService
from tuneserve.server.operations import Operations
from tuneserve.server.registry import Models
from tuneserve.v1 import classification_pb2_grpc, embedding_pb2_grpc, generation_pb2_grpc, model_pb2_grpc

logger = logging.getLogger(__name__)

_INFERENCE_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_MIB = 1 << 20
# Of the ports beside the callers' own: a few connections, always, so that probes and administrators get in.
_MOST_BESIDE = 64
# For a connection to say what it is, TLS and HTTP/2 both.
_HANDSHAKE_SECONDS = 10.0
# What the process may have open beside those connections: models' files, engines, the other ports.
_KEPT_FILES = 256
# As many as anybody needs, where the system would allow more.
_FILES = 1 << 16


def _options(connections: int, streams: int) -> list[tuple[str, int]]:
    """gRPC's own limits, which hold before anything of ours sees a call."""
    return [
        # Otherwise a second server would share the port without a word.
        ("grpc.so_reuseport", 0),
        # Looked at once a message is whole: `arrivals` bounds what is not.
        ("grpc.max_receive_message_length", 32 * _MIB),
        ("grpc.max_send_message_length", 64 * _MIB),
        # Identity alone: a megabyte of gzip may be a gigabyte.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.server_handshake_timeout_ms", round(_HANDSHAKE_SECONDS * 1000)),
        # Those that were reset count until we have forgotten them, and that is what bounds a rapid reset.
        ("grpc.max_concurrent_streams", streams),
        # A client that resets a stream has to answer a ping before it opens many more.
        ("grpc.http2.ping_on_rst_stream_percent", 100),
        # With it a connection may send 4 MiB that nobody asked for. What is asked for comes as fast without.
        ("grpc.http2.bdp_probe", 0),
    ]


def connections_within(wanted: int) -> int:
    """Returns how many connections `listen` may have, so that files are left for health, metrics and models. Lets the
    process open as many as the system allows it: what a shell begins with is for programs that use select().
    """
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < _FILES:
        files = min(_FILES, most) if most != resource.RLIM_INFINITY else _FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    if files == resource.RLIM_INFINITY or wanted <= files - _KEPT_FILES:
        return wanted
    allowed = max(1, files - _KEPT_FILES, files // 2)
    logger.warning("max_connections: %d, as the process may have %d files open (ulimit -n)", allowed, files)
    return min(wanted, allowed)


def public(
    interceptor: CallInterceptor,
    models: Models,
    operations: Operations,
    health: Health,
    connections: int,
    streams: int,
) -> grpc.aio.Server:
    """Returns the callers' port: everything."""
    server = _with_models(interceptor, models, operations, health, _options(connections, streams))
    classification = ClassificationService(models)
    embedding = EmbeddingService(models)
    generation = GenerationService(models)
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(classification, server)
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(embedding, server)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(generation, server)
    inference = InferenceService(models, classification, embedding, generation)
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, server)
    _reflect(server, *SERVICES.values(), MODEL_SERVICE, _INFERENCE_SERVICE, HEALTH_SERVICE)
    return server


def admin(interceptor: CallInterceptor, models: Models, operations: Operations, health: Health) -> grpc.aio.Server:
    """Returns the administrators' port: models and health."""
    options = _options(_MOST_BESIDE, _MOST_BESIDE)
    server = _with_models(interceptor, models, operations, health, options)
    _reflect(server, MODEL_SERVICE, HEALTH_SERVICE)
    return server


def health_only(health: Health) -> grpc.aio.Server:
    """Returns the probes' port."""
    server = grpc.aio.server(options=_options(_MOST_BESIDE, _MOST_BESIDE))
    health.servicer.add_to(server)
    return server


def bind(server: grpc.aio.Server, address: str, key: str, credentials: grpc.ServerCredentials | None = None) -> str:
    """Returns where the server listens, as host:port. Raises UserError naming the setting."""
    host, _ = host_and_port(address, key)
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        raise UserError(f"{key}: can't bind {address}", "another program has the port: choose another") from None
    return f"{host}:{port}"


def _with_models(
    interceptor: CallInterceptor,
    models: Models,
    operations: Operations,
    health: Health,
    options: list[tuple[str, int]],
) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=[interceptor], options=options)
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(models, operations), server)
    health.servicer.add_to(server)
    return server


def _reflect(server: grpc.aio.Server, *services: str) -> None:
    reflection.enable_server_reflection((*sorted(set(services)), reflection.SERVICE_NAME), server)
