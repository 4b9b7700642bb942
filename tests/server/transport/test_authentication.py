"""Authentication over a real wire: no key, a wrong key, another tenant's model, an administrator's call, a quota spent.

Whatever is refused is refused for every RPC that the server has, also for one that is added later: the calls are made
from the services' own descriptions.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import generate_latest

from tuneserve.oip import inference_pb2, inference_pb2_grpc
from tuneserve.server.call.tenants import hashed
from tuneserve.server.config import ServerConfig
from tuneserve.v1 import (
    answer_pb2,
    classification_pb2,
    classification_pb2_grpc,
    embedding_pb2,
    feedback_pb2,
    generation_pb2,
    generation_pb2_grpc,
    model_admin_pb2,
    model_admin_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    monitor_pb2,
)

from ..conftest import loopback

TENANTS = f"""
tenants:
  reader:
    keys: ["{hashed("reader-canary-key")}"]
    models: [sentiment]
    priority: 3
  writer:
    keys: ["{hashed("writer-canary-key")}"]
    models: [chat]
  slow:
    keys: ["{hashed("slow-canary-key")}"]
    requests_per_second: 0.05
  small:
    keys: ["{hashed("small-canary-key")}"]
    tokens_per_minute: 5
  boss:
    keys: ["{hashed("boss-canary-key")}"]
    role: admin
"""
READER, WRITER, SLOW, SMALL, BOSS = (
    (("authorization", f"Bearer {name}-canary-key"),) for name in ("reader", "writer", "slow", "small", "boss")
)
NOBODY = [
    (),
    (("authorization", "Bearer other-canary-key"),),
    (("authorization", "Bearer"),),
    (("authorization", "Basic reader-canary-key"),),
    (("x-api-key", "other-canary-key"),),
    (("x-api-key", "reader-canary-key"), ("x-api-key", "boss-canary-key")),
    (("authorization", "Bearer reader-canary-key"), ("authorization", "Bearer boss-canary-key")),
    (("authorization", f"Bearer {hashed('boss-canary-key')}"),),
]

SERVICES = [
    service
    for module in (
        *(answer_pb2, classification_pb2, embedding_pb2, feedback_pb2, generation_pb2, monitor_pb2),
        *(model_pb2, model_admin_pb2, inference_pb2),
    )
    for service in module.DESCRIPTOR.services_by_name.values()
]
METHODS = [method for service in SERVICES for method in service.methods]
ADMIN = list(model_admin_pb2.DESCRIPTOR.services_by_name["ModelAdminService"].methods)


def name_of(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


def invoke(channel: grpc.aio.Channel, method: MethodDescriptor, metadata: tuple = (), model: str = ""):
    """Calls any method of ours, with a request that names a model and is empty otherwise. Returns its answers."""
    request_type = message_factory.GetMessageClass(method.input_type)
    request = request_type()
    for field in ("model", "model_name", "name"):
        if model and field in method.input_type.fields_by_name:
            setattr(request, field, model)
            break
    path = f"/{method.containing_service.full_name}/{method.name}"
    wire = {
        "request_serializer": request_type.SerializeToString,
        "response_deserializer": message_factory.GetMessageClass(method.output_type).FromString,
    }
    kind = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, True): channel.stream_stream,
    }[method.client_streaming, method.server_streaming]

    async def answers() -> list:
        given = iter([request]) if method.client_streaming else request
        call = kind(path, **wire)(given, metadata=metadata, timeout=20)
        try:
            return [answer async for answer in call] if method.server_streaming else [await call]
        except grpc.aio.AioRpcError as error:
            # gRPC's client says this of a stream that the server has ended before the client sent its first message.
            if method.client_streaming and "execute_batch" in error.debug_error_string():
                return await answers()
            raise

    return answers()


@pytest.fixture
def config(tmp_path, make_bert, make_llama) -> ServerConfig:
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    (tmp_path / "models").mkdir()
    return loopback(
        {"sentiment": make_bert(), "chat": make_llama()},
        tenants=tmp_path / "tenants.yaml",
        models_root=tmp_path / "models",
        drain_seconds=5,
    )


@pytest.fixture
async def server(config, serve_config) -> AsyncIterator:
    async with serve_config(config) as served:
        yield served


def classify(channel: grpc.aio.Channel, metadata: tuple, model: str = "sentiment", priority: int = 0):
    request = classification_pb2.ClassifyRequest(model=model, inputs=[{"text": "good"}], priority=priority)
    return classification_pb2_grpc.ClassificationServiceStub(channel).Classify(request, metadata=metadata, timeout=20)


def generate(channel: grpc.aio.Channel, metadata: tuple, max_tokens: int = 8):
    request = generation_pb2.GenerateRequest(
        model="chat", prompt={"text": "a film"}, sampling={"max_tokens": max_tokens}
    )
    return generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, metadata=metadata, timeout=20)


def seen_by_the_engines(server) -> Iterator[object]:
    for engine in server.engines.values():
        yield from (ticket for ticket in engine.tickets if not ticket.request_id.startswith("warm-up"))


async def test_every_rpc_needs_a_key(server, refused):
    # A connection that showed one may make so many calls.
    await model_pb2_grpc.ModelServiceStub(server.channel).ListModels(model_pb2.ListModelsRequest(), metadata=READER)
    for metadata in NOBODY:
        for method in METHODS:
            error = await refused(
                invoke(server.channel, method, metadata, "sentiment"), grpc.StatusCode.UNAUTHENTICATED
            )
            assert "canary" not in error.details(), name_of(method)
            assert "sha256" not in error.details()
    assert not list(seen_by_the_engines(server))


async def test_a_good_key(server):
    response = await classify(server.channel, READER)
    assert len(response.results) == 1
    assert len((await generate(server.channel, WRITER)).completions) == 1
    response = await classify(server.channel, (("x-api-key", "reader-canary-key"),))
    assert len(response.results) == 1


async def test_another_tenant_s_model_looks_like_one_that_is_not_there(server):
    """For every RPC that names a model, byte for byte: with the name alone, and with a version, right or wrong."""
    version = next(model.version for model in server.app.models if model.name == "chat")

    async def outcome(method: MethodDescriptor, model: str) -> tuple:
        """What comes back, without the name where it is the caller's own, echoed."""
        try:
            answers = await invoke(server.channel, method, (*READER, ("x-request-id", "same")), model)
            return grpc.StatusCode.OK, [answer.SerializeToString().replace(model.encode(), b"-") for answer in answers]
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details(), list(error.trailing_metadata())

    named = [
        method
        for method in METHODS
        if method not in ADMIN and {"model", "model_name", "name"} & set(method.input_type.fields_by_name)
    ]
    assert len(named) >= 12
    for method in named:
        absent = await outcome(method, "nope")
        assert b"chat" not in repr(absent).encode()
        for suffix in ("", f"@{version}", "@0123456789ab"):
            assert await outcome(method, f"chat{suffix}") == await outcome(method, f"nope{suffix}"), name_of(method)
        if not method.client_streaming:
            assert absent[0] == grpc.StatusCode.PERMISSION_DENIED, name_of(method)
            assert (await outcome(method, "sentiment"))[0] != absent[0], f"{name_of(method)}: the tenant's own"
    assert [ticket.request_id for ticket in server.engines["chat"].tickets] == ["warm-up"]


async def test_another_tenant_s_model_in_a_stream(server):
    stub = classification_pb2_grpc.ClassificationServiceStub(server.channel)

    async def errors(metadata: tuple, *models: str) -> list[tuple[int, str]]:
        requests = [
            classification_pb2.ClassifyStreamRequest(id=id_, request={"model": model, "inputs": [{"text": "good"}]})
            for id_, model in enumerate(models)
        ]
        call = stub.ClassifyStream(iter(requests), metadata=(*metadata, ("x-request-id", "same")), timeout=20)
        answers = sorted([answer async for answer in call], key=lambda answer: answer.id)
        return [(answer.error.code, answer.error.message) for answer in answers]

    allowed, absent, other = await errors(READER, "sentiment", "nope", "chat")
    assert absent == other
    assert absent[0] == grpc.StatusCode.PERMISSION_DENIED.value[0]
    assert allowed == (0, "")


async def test_a_name_that_is_allowed_and_absent_tells_no_other_name(server, refused, config):
    """An alias that the tenant may use is no model: the versions it is asked for are not there."""
    text = TENANTS.replace("models: [sentiment]", "models: [sentiment, prod]")
    config.tenants.write_text(text)
    assert server.app._tenants.reload_if_changed()
    for name in ("prod", "prod@0123456789ab", "sentiment@0123456789ab"):
        error = await refused(classify(server.channel, READER, name), grpc.StatusCode.NOT_FOUND)
        assert "chat" not in error.details(), name


async def test_lists_show_a_tenant_its_own_models(server):
    for metadata, names in [(READER, ["sentiment"]), (WRITER, ["chat"]), (BOSS, ["chat", "sentiment"])]:
        stub = model_pb2_grpc.ModelServiceStub(server.channel)
        models = await stub.ListModels(model_pb2.ListModelsRequest(), metadata=metadata)
        aliases = await stub.ListAliases(model_pb2.ListAliasesRequest(), metadata=metadata)
        assert [model.name for model in models.models] == names
        assert [alias.name for alias in aliases.aliases] == names


async def test_health_needs_no_key(server):
    stub = health_pb2_grpc.HealthStub(server.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_tells_strangers_no_names(server, refused):
    stub = health_pb2_grpc.HealthStub(server.channel)
    for name in ("models/sentiment", "models/nothing"):
        await refused(stub.Check(health_pb2.HealthCheckRequest(service=name)), grpc.StatusCode.NOT_FOUND)


async def test_an_administrator_s_calls_with_a_user_s_key(server, refused):
    assert len(ADMIN) == 7
    before = str(server.app.models.routes)
    for method in ADMIN:
        for metadata in (READER, SMALL):
            error = await refused(
                invoke(server.channel, method, metadata, "sentiment"), grpc.StatusCode.PERMISSION_DENIED
            )
            assert "is for administrators" in error.details(), name_of(method)
    assert str(server.app.models.routes) == before


@pytest.mark.parametrize("port", ["public", "admin"])
async def test_an_administrator_s_calls_by_an_administrator(server, port):
    channel, metadata = {"public": (server.channel, BOSS), "admin": (server.admin, ())}[port]
    stub = model_admin_pb2_grpc.ModelAdminServiceStub(channel)
    version = next(model.id for model in server.app.models if model.name == "sentiment")
    alias = model_pb2.Alias(name="prod", targets=[{"model": version, "weight": 1}])
    await stub.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias), metadata=metadata)
    assert len((await classify(server.channel, BOSS, "prod")).results) == 1
    for method in ADMIN:
        # Refused for what is in the request, which is nothing, and not for who sent it.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await invoke(channel, method, metadata)
        assert caught.value.code() not in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)


async def test_the_admin_port_takes_no_other_calls(server, refused):
    await refused(classify(server.admin, BOSS), grpc.StatusCode.UNIMPLEMENTED)


def spent(error: grpc.aio.AioRpcError) -> tuple[str, float]:
    """The reason and the seconds to wait that a refusal for a quota tells, each way it does."""
    found: dict[type, object] = {}
    for detail in rpc_status.from_call(error).details:
        for kind in (error_details_pb2.RetryInfo, error_details_pb2.ErrorInfo):
            if detail.Is(kind.DESCRIPTOR):
                found[kind] = kind.FromString(detail.value)
    retry = found[error_details_pb2.RetryInfo].retry_delay.ToMilliseconds()
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == str(retry)
    assert found[error_details_pb2.ErrorInfo].domain == "tuneserve.dev"
    return found[error_details_pb2.ErrorInfo].reason, retry / 1000


async def test_a_quota_of_requests(server, refused):
    await classify(server.channel, SLOW)
    reason, seconds = spent(await refused(classify(server.channel, SLOW), grpc.StatusCode.RESOURCE_EXHAUSTED))
    assert reason == "REQUEST_QUOTA"
    assert 15 < seconds <= 20
    await classify(server.channel, READER)
    assert len(list(seen_by_the_engines(server))) == 2


async def test_a_quota_of_tokens_is_of_prompt_and_completion(server, refused):
    await generate(server.channel, SMALL, max_tokens=8)
    reason, seconds = spent(await refused(generate(server.channel, SMALL), grpc.StatusCode.RESOURCE_EXHAUSTED))
    assert reason == "TOKEN_QUOTA"
    # 5 tokens a minute: 12 s each, for those over and one to go on with. The prompt has a token a letter at the most.
    assert 12 * (8 + 1 - 5) < seconds <= 12 * (8 + len("a film") + 1 - 5)


async def test_a_quota_of_tokens_is_of_classified_texts_too(server, refused):
    assert (await classify(server.channel, SMALL)).usage.prompt_tokens == 3
    await classify(server.channel, SMALL)
    error = await refused(classify(server.channel, SMALL), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert spent(error)[0] == "TOKEN_QUOTA"
    assert len(list(seen_by_the_engines(server))) == 2


async def test_a_quota_is_spent_within_a_stream(server):
    async def requests() -> AsyncIterator[classification_pb2.ClassifyStreamRequest]:
        for id_ in range(6):
            yield classification_pb2.ClassifyStreamRequest(
                id=id_, request={"model": "sentiment", "inputs": [{"text": "good"}]}
            )
            await asyncio.sleep(0.1)

    stub = classification_pb2_grpc.ClassificationServiceStub(server.channel)
    answers = [answer async for answer in stub.ClassifyStream(requests(), metadata=SMALL, timeout=20)]
    assert len(answers) == 6
    assert {answer.error.code for answer in answers if answer.HasField("error")} == {
        grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    }


async def test_a_quota_is_spent_within_a_stream_of_the_open_inference_protocol(server):
    async def requests() -> AsyncIterator[inference_pb2.ModelInferRequest]:
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"good"]}}
        for _ in range(6):
            yield inference_pb2.ModelInferRequest(model_name="sentiment", inputs=[tensor])
            await asyncio.sleep(0.1)

    stub = inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
    call = stub.ModelStreamInfer(requests(), metadata=SMALL, timeout=20)
    errors = [answer.error_message async for answer in call]
    assert len(errors) == 6
    assert not errors[0]
    assert "quota of tokens is spent" in errors[-1]


async def test_nobody_goes_before_the_priority_of_their_key(server):
    for asked in (-5, 0, 7):
        await classify(server.channel, READER, priority=asked)
    assert [ticket.priority >> 16 for ticket in seen_by_the_engines(server)] == [3, 3, 7]


@asynccontextmanager
async def reloading(app) -> AsyncIterator[None]:
    """What a server that runs does once a second."""
    task = asyncio.create_task(app._reload())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_changed_file_is_in_force_without_a_restart(server, config, refused, caplog):
    def replace(text: str) -> None:
        (config.tenants.parent / "new").write_text(text)
        (config.tenants.parent / "new").replace(config.tenants)

    async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
        for _ in range(200):
            if await condition():
                return
            await asyncio.sleep(0.05)
        raise AssertionError("not within ten seconds")

    async def ends_with(code: grpc.StatusCode, metadata: tuple) -> bool:
        return await classify(server.channel, metadata).code() == code

    async def is_logged() -> bool:
        return any(record.levelname == "ERROR" for record in caplog.records)

    new = (("authorization", "Bearer new-canary-key"),)
    async with reloading(server.app):
        await refused(classify(server.channel, new), grpc.StatusCode.UNAUTHENTICATED)
        replace(TENANTS.replace(hashed("reader-canary-key"), hashed("new-canary-key")))
        await eventually(lambda: ends_with(grpc.StatusCode.OK, new))
        await refused(classify(server.channel, READER), grpc.StatusCode.UNAUTHENTICATED)
        replace(TENANTS.replace(hashed("reader-canary-key"), "new-canary-key"))
        await eventually(is_logged)
        assert len((await classify(server.channel, new)).results) == 1, "a bad file changes nothing"
        replace(TENANTS.replace("models: [sentiment]", "models: [chat]"))
        await eventually(lambda: ends_with(grpc.StatusCode.PERMISSION_DENIED, READER))
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "tenants not reloaded, the old ones stay: tenants.yaml: tenants.reader.keys[0]: "
        "expected sha256: and 64 hex digits, and `expires YYYY-MM-DD` behind it if it expires"
    ]


async def test_keys_are_in_no_status_log_or_metric(server, refused, caplog):
    caplog.set_level(logging.DEBUG)
    await classify(server.channel, READER)
    await refused(classify(server.channel, READER, "chat"), grpc.StatusCode.PERMISSION_DENIED)
    for metadata in NOBODY:
        await refused(classify(server.channel, metadata), grpc.StatusCode.UNAUTHENTICATED)
    logged = str([vars(record) for record in caplog.records])
    everything = caplog.text + logged + generate_latest(server.app.metrics.registry).decode()
    assert "sentiment" in everything
    assert "canary" not in everything
    assert hashed("reader-canary-key").removeprefix("sha256:") not in everything
