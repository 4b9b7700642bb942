"""What health says: of each service, of each alias and of the whole server."""

from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneserve.server.config import ModelConfig
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.aliases import Models, Route
from tuneserve.server.models.health import HEALTH_SERVICE, MODEL_SERVICES, Health
from tuneserve.server.models.model import Model
from tuneserve.server.transport.accepting import Server, Services
from tuneserve.v1 import checkpoint_pb2, model_pb2

READY, LOADING, FAILED = (
    model_pb2.MODEL_STATE_READY,
    model_pb2.MODEL_STATE_LOADING,
    model_pb2.MODEL_STATE_FAILED,
)
CLASSIFIES, GENERATES = checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION, checkpoint_pb2.TASK_GENERATION
CLASSIFICATION, GENERATION = "tuneserve.v1.ClassificationService", "tuneserve.v1.GenerationService"
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return response.status


async def test_health_per_service_and_overall(served):
    for service in (
        "",
        "tuneserve.v1.AnswerService",
        "tuneserve.v1.ClassificationService",
        "tuneserve.v1.GenerationService",
        "tuneserve.v1.EmbeddingService",
        "tuneserve.v1.ModelAdminService",
        "tuneserve.v1.ModelService",
        "tuneserve.v1.MonitorService",
        "models/chat",
    ):
        assert await health(served.channel, service) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(served.channel, "nope")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def version(name: str, content: str, state: int, task: int = CLASSIFIES) -> Model:
    manifest = checkpoint_pb2.Checkpoint(task=task, files=[checkpoint_pb2.File(path="model", sha256=content)])
    return Model(name, ModelConfig(path=f"/{name}"), manifest, Metrics(), state=state)


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def health_of(models) -> Health:
    return Health(models)


@pytest.fixture
async def channel(health_of) -> AsyncIterator[grpc.aio.Channel]:
    """A server of nothing else."""
    services = Services()
    health_of.servicer.add_to(services)
    server = Server(services, [])
    port = server.port.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as one:
        yield one
    await server.stop(0)


async def test_an_alias_serves_while_a_version_answers_and_others_go_on(models, health_of, channel):
    up, down = version("m", "a", READY), version("m", "b", FAILED)
    models.set_route("m", Route([(down, 9), (up, 1)]))
    models.set_route("chat", Route([(version("chat", "c", FAILED, GENERATES), 1)]))
    await health_of.publish()
    for service in ("", CLASSIFICATION, "models/m", *MODEL_SERVICES):
        assert await health(channel, service) == SERVING, service
    for service in (GENERATION, "tuneserve.v1.EmbeddingService", "models/chat"):
        assert await health(channel, service) == NOT_SERVING, service
    up.state = FAILED
    await health_of.publish()
    for service in ("", CLASSIFICATION, "models/m"):
        assert await health(channel, service) == NOT_SERVING, service


async def test_while_one_is_loaded_no_alias_of_its_service_counts(models, health_of, channel):
    models.set_route("m", Route([(version("m", "a", READY), 1)]))
    models.set_route("n", Route([(version("n", "b", LOADING), 1)]))
    models.set_route("chat", Route([(version("chat", "c", READY, GENERATES), 1)]))
    await health_of.publish()
    for service in ("", CLASSIFICATION, "models/n"):
        assert await health(channel, service) == NOT_SERVING, service
    for service in (GENERATION, "models/m"):
        assert await health(channel, service) == SERVING, service


async def test_strangers_learn_no_names_where_that_is_so(models, channel, health_of, refused):
    models.set_route("m", Route([(version("m", "a", READY), 1)]))
    # The servicer of one that tells none.
    quiet = Health(models, names=False)
    quiet.servicer = health_of.servicer
    await quiet.publish()
    assert await health(channel) == SERVING
    await refused(health(channel, "models/m"), grpc.StatusCode.NOT_FOUND)


async def test_who_watches_is_told_of_changes_alone(models, health_of, channel):
    stub, model = health_pb2_grpc.HealthStub(channel), version("m", "a", READY)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="models/m"), timeout=30)
    assert (await watch.read()).status == UNKNOWN
    models.set_route("m", Route([(model, 1)]))
    for _ in range(3):
        await health_of.publish()
    assert (await watch.read()).status == SERVING
    await health_of.publish()
    # Whoever watches has had its turn by then.
    assert await health(channel) == SERVING
    model.state = FAILED
    await health_of.publish()
    assert (await watch.read()).status == NOT_SERVING
    models.set_route("m", None)
    await health_of.publish()
    assert (await watch.read()).status == UNKNOWN
    watch.cancel()


async def test_a_drain_is_for_good(models, health_of, channel):
    models.set_route("m", Route([(version("m", "a", READY), 1)]))
    await health_of.publish()
    await health_of.drain()
    await health_of.publish()
    for service in ("", CLASSIFICATION, "models/m", *MODEL_SERVICES):
        assert await health(channel, service) == NOT_SERVING, service


@pytest.mark.parametrize(
    ("message", "what"),
    [(b"\n\x7f", "is not a message of this method's type"), (b"x" * 1025, "has 1025 bytes; allowed: 1024")],
)
async def test_what_is_asked_is_short(channel, refused, message, what):
    check = channel.unary_unary(f"/{HEALTH_SERVICE}/Check")
    error = await refused(check(message), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith(f"request: {what} (request ")
