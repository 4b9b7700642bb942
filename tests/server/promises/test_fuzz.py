"""Bad bytes: whatever a message holds, its answer is a result or a refusal that says nothing of what it held.

Messages of every rpc are made from the descriptors: all at random, or good ones with a few fields spoiled, which get
further. The bytes of messages are spoiled too. `make fuzz` sends 10,000; TUNESERVE_FUZZ_EXAMPLES sets another number.
None of them holds the event loop for longer than is promised.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, Verbosity, given, settings
from hypothesis import strategies as st

from tuneserve.oip import inference_pb2 as oip
from tuneserve.server.config import ModelConfig
from tuneserve.server.models import memory
from tuneserve.v1 import (
    answer_pb2,
    classification_pb2,
    embedding_pb2,
    feedback_pb2,
    generation_pb2,
    model_admin_pb2,
    model_pb2,
    monitor_pb2,
)

from ..conftest import loopback

FILES = (
    *(answer_pb2, classification_pb2, embedding_pb2, feedback_pb2, generation_pb2, monitor_pb2),
    *(model_pb2, model_admin_pb2, oip),
)
METHODS: list[MethodDescriptor] = [
    method for file in FILES for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods
]

# Of all arguments, when something failed; the assertions say what it was.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

SHORT = 1300
EXAMPLES = int(os.environ.get("TUNESERVE_FUZZ_EXAMPLES", SHORT))
fuzzed = settings(
    # Two tests a method, and those whose message has no fields are soon done.
    max_examples=max(1, EXAMPLES // (2 * sum(bool(method.input_type.fields) for method in METHODS))),
    # The short form is the same each time; the long one looks for what is not known yet.
    derandomize=EXAMPLES == SHORT,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    verbosity=Verbosity.quiet,
)

CODE = grpc.StatusCode
# gRPC refuses more before anything is looked at.
MOST_BYTES = 4 << 20
# How a healthy server may answer: never INTERNAL or UNKNOWN, and it is never UNAVAILABLE or late.
ALLOWED = {
    CODE.OK,
    CODE.INVALID_ARGUMENT,
    CODE.NOT_FOUND,
    CODE.UNIMPLEMENTED,
    CODE.ABORTED,
    CODE.PERMISSION_DENIED,
    CODE.FAILED_PRECONDITION,
    CODE.ALREADY_EXISTS,
}
# In texts of every kind, but not in names and keys, which a refusal may repeat.
CANARY = "cAnArY"
NAMES = ("model", "model_name", "name", "version", "model_version", "adapter", "path", "index", "monitor")

EDGES = [
    "",
    "\0",
    " ",
    "a",
    "the film was good",
    "good " * 4000,
    "x" * 70_000,
    "🙂" * 50,
    "e\u0301\u202e\ufeff\u2028",
    "<|end|>",
    "{{ messages }}",
    "[" * 3000,
    "{}",
    f'{{"type": "{CANARY}"}}',
    '{"max_tokens": 3, "temperature": 0}',
    f"%s%n{CANARY}\r\n",
    f"{CANARY} good bad",
    f"(?P<{CANARY}>",
]
texts = st.one_of(st.sampled_from(EDGES), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
names = st.one_of(
    st.sampled_from(["spare", "new", "other", "adapter", "a"]),
    st.sampled_from(["sentiment", "topics", "ner", "chat", "vectors", "docs", "news"] * 3),
    st.sampled_from(["", "@", "chat@", "n\0pe", "x" * 50_000]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
)


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    known = [value for value in (0, 1, 2, 3, 8, 64, -1, low, high) if low <= value <= high]
    return st.one_of(st.sampled_from(known), st.integers(low, high))


SCALARS: dict[int, st.SearchStrategy] = {
    FieldDescriptor.CPPTYPE_INT32: integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.floats(width=32)),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


def scalars(field: FieldDescriptor) -> st.SearchStrategy:
    if field.enum_type:
        return st.one_of(st.sampled_from([value.number for value in field.enum_type.values]), st.integers(-5, 1000))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.one_of(st.binary(max_size=20), texts.map(str.encode))
    if field.type == FieldDescriptor.TYPE_STRING:
        return names if field.name in NAMES else texts
    return SCALARS[field.cpp_type]


def fill(draw: Callable, message: Message, field: FieldDescriptor, depth: int) -> None:
    """Sets one field to something."""
    inner = field.message_type
    if inner and inner.GetOptions().map_entry:
        entries, kinds = getattr(message, field.name), inner.fields_by_name
        for _ in range(draw(st.integers(0, 2))):
            key = draw(names if kinds["key"].type == FieldDescriptor.TYPE_STRING else scalars(kinds["key"]))
            if kinds["value"].message_type:
                entries[key].CopyFrom(draw(messages(kinds["value"].message_type, depth + 1)))
            else:
                entries[key] = draw(scalars(kinds["value"]))
    elif field.is_repeated:
        message.ClearField(field.name)
        one = messages(inner, depth + 1) if inner else scalars(field)
        getattr(message, field.name).extend(draw(st.lists(one, max_size=3)) * draw(st.sampled_from([1, 1, 1, 40])))
    elif inner:
        getattr(message, field.name).SetInParent()
        getattr(message, field.name).CopyFrom(draw(messages(inner, depth + 1)))
    else:
        setattr(message, field.name, draw(scalars(field)))


@st.composite
def messages(draw, descriptor: Descriptor, depth: int = 0) -> Message:
    """Any message of a kind."""
    message = message_factory.GetMessageClass(descriptor)()
    if depth > 6 or not descriptor.fields:
        return message
    for field in draw(st.lists(st.sampled_from(list(descriptor.fields)), max_size=4, unique_by=lambda one: one.number)):
        fill(draw, message, field, depth)
    return message


@st.composite
def spoiled(draw, good: Message) -> Message:
    """A good message with a few fields changed, at any depth."""
    message = type(good)()
    message.CopyFrom(good)
    for _ in range(draw(st.integers(1, 2))):
        target, depth = message, 0
        while target.DESCRIPTOR.fields:
            field = draw(st.sampled_from(list(target.DESCRIPTOR.fields)))
            if field.message_type and draw(st.booleans()):
                if not field.is_repeated:
                    target, depth = getattr(target, field.name), depth + 1
                    continue
                if not field.message_type.GetOptions().map_entry and getattr(target, field.name):
                    target, depth = draw(st.sampled_from(list(getattr(target, field.name)))), depth + 1
                    continue
            fill(draw, target, field, depth)
            break
    return message


def tensor(name: str, *values: bytes) -> oip.ModelInferRequest.InferInputTensor:
    return oip.ModelInferRequest.InferInputTensor(
        name=name, datatype="BYTES", shape=[len(values)], contents=oip.InferTensorContents(bytes_contents=values)
    )


def good(method: MethodDescriptor) -> list[Message]:
    """Requests that are answered, for the fields of which some are then spoiled."""
    kind = message_factory.GetMessageClass(method.input_type)
    text, chat = {"text": "the film was"}, {"messages": [{"role": "user", "content": CANARY}]}
    examples = [{"text": CANARY, "label": "good"}]
    inputs = [{"text": "the film was good"}, {"text": f"{CANARY} film", "text_pair": "bad"}]
    classify: list[dict] = [
        {"model": "sentiment", "inputs": inputs[:1], "explain": {}},
        {"model": "topics", "inputs": inputs, "threshold": 0.5, "thresholds": {"a": 0.1}, "top_k": 2},
        {"model": "sentiment", "inputs": [{"text": "good " * 60}], "truncation": 3, "windows": {"overlap": 4}},
        {"model": "chat", "inputs": inputs[:1], "labels": ["good", "bad"]},
        {"model": "chat", "inputs": inputs[:1], "labels": ["good", CANARY], "examples": examples, "instruction": "?"},
    ]
    generate: list[dict] = [
        {"model": "chat", "prompt": {"text": CANARY}, "sampling": {"max_tokens": 3, "n": 2, "stop": ["x"]}},
        {"model": "chat", "prompt": {"chat": chat}, "sampling": {"structured_output": {"json_schema": "{}"}}},
        {"model": "chat", "prompt": {"token_ids": {"ids": [5, 6]}}, "sampling": {"structured_output": {"regex": "a"}}},
    ]
    plain: dict[str, list[dict]] = {
        "Classify": classify,
        "ClassifyStream": [{"id": 7, "request": one} for one in classify],
        "ClassifyTokens": [{"model": "ner", "texts": ["angela merkel née"], "truncation": 3, "offset_unit": 3}],
        "ObserveStream": [
            {"id": 7, "monitor": "news", "text": CANARY},
            {"monitor": "news", "text": "good " * 60, "truncation": 2},
        ],
        "Examples": [{"monitor": "news", "topic": "a", "sentiment": "pos"}],
        "Feedback": [
            {"request_id": "r-1", "model": "sentiment", "label": {"text": CANARY, "labels": ["pos"]}},
            {"request_id": "r-1", "model": "topics", "label": {"text": CANARY}},
            {
                "request_id": "r-1",
                "model": "chat",
                "answer": {"prompt": {"chat": chat}, "answer": CANARY, "good": True},
            },
            {"request_id": "r-1", "model": "vectors", "click": {"query": CANARY, "chosen": "a", "ignored": ["b"]}},
        ],
        "Rank": [{"model": "sentiment", "query": CANARY, "candidates": ["good", "bad"], "label": "pos"}],
        "UpsertDocuments": [
            {"index": "docs", "documents": [{"id": CANARY, "title": CANARY, "text": "good", "readers": ["a"]}]},
            {"index": "docs", "documents": [{"id": "1", "text": f"{CANARY} good", "metadata": {"a": "b"}}]},
        ],
        "DeleteDocuments": [{"index": "docs", "ids": [CANARY, "1"]}],
        "Search": [
            {"index": "docs", "query": CANARY, "readers": ["a"]},
            {"index": "docs", "liked": ["1"], "disliked": [CANARY]},
            {"index": "docs", "query": "good", "filters": [{"key": "a", "values": ["b", CANARY]}], "offset_unit": 2},
        ],
        "Answer": [
            {"index": "docs", "messages": [{"role": "user", "content": CANARY}], "readers": ["a"], "offset_unit": 3},
            {
                "index": "docs",
                "messages": [{"role": role, "content": f"{CANARY} good"} for role in ("user", "assistant", "user")],
                "filters": [{"key": "a", "values": ["b"]}],
                "limit": 2,
            },
        ],
        "Embed": [{"model": "vectors", "texts": [CANARY, "good"], "dimensions": 2}],
        "Generate": generate,
        "GenerateStream": generate,
        "Tokenize": [{"model": "chat", "prompt": text}, {"model": "chat", "prompt": {"chat": chat}}],
        "GetModel": [{"model": "chat"}],
        "WatchModel": [{"model": "chat"}],
        "LoadModel": [
            {"model": "new", "path": "spare"},
            {"model": "sentiment", "path": "spare", "settings": {"max_queue": 3}},
        ],
        "CancelLoad": [{"model": "new"}, {"model": "sentiment"}],
        "UnloadModel": [{"model": "new"}, {"model": "sentiment"}],
        "SetAlias": [
            {"alias": {"name": "other", "targets": [{"model": "new", "weight": 1}]}},
            {"alias": {"name": "sentiment", "targets": [{"model": "sentiment", "weight": 1}]}},
        ],
        "DeleteAlias": [{"name": "other"}],
        "LoadAdapter": [{"model": "chat", "adapter": "a", "path": "adapter"}],
        "UnloadAdapter": [{"model": "chat", "adapter": "a"}],
        "ModelReady": [{"name": "chat"}],
        "ModelMetadata": [{"name": "chat"}],
    }
    options = tensor("sampling_parameters", b'{"max_tokens": 2}')
    streamed = oip.ModelInferRequest.InferInputTensor(
        name="stream", datatype="BOOL", shape=[1], contents=oip.InferTensorContents(bool_contents=[True])
    )
    infer = [
        oip.ModelInferRequest(model_name="sentiment", inputs=[tensor("text", b"good", CANARY.encode())]),
        oip.ModelInferRequest(model_name="ner", inputs=[tensor("text", b"angela")]),
        oip.ModelInferRequest(model_name="vectors", inputs=[tensor("text", b"good")]),
        oip.ModelInferRequest(model_name="chat", inputs=[tensor("text_input", CANARY.encode()), options]),
        oip.ModelInferRequest(model_name="chat", inputs=[tensor("text_input", b"the"), options, streamed]),
    ]
    if kind is oip.ModelInferRequest:
        return infer
    return [kind(**one) for one in plain.get(method.name, [{}])]


def attacks(method: MethodDescriptor) -> st.SearchStrategy[Message]:
    some = st.sampled_from(good(method)).flatmap(spoiled)
    return st.one_of(some, some, some, messages(method.input_type))


STREAMED = classification_pb2.ClassifyStreamResponse, monitor_pb2.ObserveStreamResponse


async def answer(channel: grpc.aio.Channel, method: MethodDescriptor, sent: list[bytes]) -> list[str]:
    """Sends bytes as a call's messages and checks how it ends. Returns what is said where it, or a part, is refused."""
    kinds = {(False, False): "unary_unary", (False, True): "unary_stream", (True, True): "stream_stream"}
    kind = kinds[method.client_streaming, method.server_streaming]
    decode = message_factory.GetMessageClass(method.output_type).FromString
    ask = getattr(channel, kind)(f"/{method.containing_service.full_name}/{method.name}", response_deserializer=decode)
    call = ask(iter(sent) if method.client_streaming else sent[0], timeout=60)
    received = []
    with contextlib.suppress(grpc.aio.AioRpcError):
        received = [one async for one in call] if method.server_streaming else [await call]
    code, details = await call.code(), await call.details()
    if len(sent) > 1 and details == "Internal error from Core":
        # The client's own word for a stream that the server ended while it still wrote.
        return [said for one in sent for said in await answer(channel, method, [one])]
    if max(map(len, sent)) > MOST_BYTES:
        assert code == CODE.RESOURCE_EXHAUSTED
        return []
    assert code in ALLOWED, (method.name, code, details)
    said = [] if code == CODE.OK else [f"{details} {await call.trailing_metadata()}"]
    for one in received:
        if isinstance(one, STREAMED) and one.HasField("error"):
            assert one.error.code in [code.value[0] for code in ALLOWED], one.error
            said.append(str(one.error))
        if isinstance(one, oip.ModelStreamInferResponse):
            assert "internal error" not in one.error_message
            said.append(one.error_message)
    return said


@pytest.fixture
async def target(served, unharmed, caplog):
    """The server that all tests share."""
    async with unharmed(served):
        yield served
    errors = [record.getMessage() for record in caplog.get_records("call") if record.levelname in ("ERROR", "CRITICAL")]
    assert not errors


# Those of administrators change the server: they have one of their own, and the port at which they are allowed.
CHANGES = [method for method in METHODS if method.containing_service.name == "ModelAdminService"]


def each(methods: list[MethodDescriptor]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("method", methods, ids=[one.full_name.split(".", 2)[-1] for one in methods])


@each([method for method in METHODS if method not in CHANGES])
@fuzzed
@given(data=st.data())
async def test_messages(target, soon, method, data):
    sent = [one.SerializeToString() for one in data.draw(st.lists(attacks(method), min_size=1, max_size=3))]
    said = await soon(lambda: answer(target.channel, method, sent))
    assert not [one for one in said if CANARY in one]


ADMINISTRATION = [method for method in METHODS if method.containing_service.name.startswith("Model")]


@pytest.fixture
async def administered(serve_config, make_bert, make_llama, tmp_path, monkeypatch):
    """A server that its administrators may change, with something to load."""
    # Models that are loaded again and again, on a machine that may have other work.
    monkeypatch.setattr(memory, "check", lambda *_: None)
    make_bert(labels=["neg", "pos", "mixed"]).rename(tmp_path / "spare")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"any")
    config = loopback(
        {
            "sentiment": make_bert(),
            "chat": ModelConfig(path=make_llama(), max_adapters=2),
        },
        models_root=tmp_path,
        drain_seconds=2,
    )
    async with serve_config(config) as served:
        yield served


def known_versions(served, message: Message) -> None:
    """Puts versions that there are where a version is wanted."""
    versions = {model.name: model.id for model in served.app.models}
    if isinstance(message, model_admin_pb2.CancelLoadRequest | model_admin_pb2.UnloadModelRequest):
        message.model = versions.get(message.model, message.model)
    if isinstance(message, model_admin_pb2.SetAliasRequest):
        message.alias.shadow = versions.get(message.alias.shadow, message.alias.shadow)
        for target in message.alias.targets:
            target.model = versions.get(target.model, target.model)


@each(CHANGES)
@fuzzed
@given(data=st.data())
async def test_changes(administered, unheld, method, data):
    message = data.draw(attacks(method))
    if data.draw(st.booleans()):
        known_versions(administered, message)
    sent = [message.SerializeToString()]
    async with unheld():
        said = await answer(administered.admin, method, sent)
    assert not [one for one in said if CANARY in one]


@settings(fuzzed, max_examples=max(20, EXAMPLES // 10))
@given(data=st.data())
async def test_administration(administered, unheld, data):
    """In any order: what was loaded before is moved, unloaded and loaded again."""
    method = data.draw(st.sampled_from(ADMINISTRATION))
    message = data.draw(attacks(method))
    if data.draw(st.booleans()):
        known_versions(administered, message)
    sent, waits = [message.SerializeToString()], data.draw(st.booleans())
    loads = administered.app.operations.loading._tasks
    async with unheld():
        said = await answer(administered.admin, method, sent)
        if waits:
            await asyncio.gather(*loads.values(), return_exceptions=True)
    assert not [one for one in said if CANARY in one]
    models = list(administered.app.models)
    assert all(model.is_ready or model.state == model_pb2.MODEL_STATE_LOADING for model in models)
    assert {model.id for model in models if model.is_ready} == set(administered.app.supervisor._tasks)
    assert {model.id for model in models if not model.is_ready} <= set(loads)
    for route in administered.app.models.routes.values():
        assert all(model in models for model in route.models())


@st.composite
def broken(draw, good: bytes) -> bytes:
    """A message's bytes with some of them changed, lost or repeated."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 8))
        data[at : at + draw(st.integers(0, length))] = draw(st.binary(max_size=length))
    return bytes(data)


def bytes_of(method: MethodDescriptor) -> st.SearchStrategy[bytes]:
    whole = st.sampled_from([one.SerializeToString() for one in good(method)])
    return st.one_of(st.binary(max_size=200), whole.flatmap(broken), whole)


@each([method for method in METHODS if method not in CHANGES])
@fuzzed
@given(data=st.data())
async def test_bytes(target, soon, method, data):
    sent = data.draw(st.lists(bytes_of(method), min_size=1, max_size=3))
    await soon(lambda: answer(target.channel, method, sent))


@each(CHANGES)
@fuzzed
@given(data=st.data())
async def test_bytes_of_changes(administered, unheld, method, data):
    sent = [data.draw(bytes_of(method))]
    async with unheld():
        await answer(administered.admin, method, sent)
