"""Messages of every method, as large as they may be for one of their fields, or for one of their texts, however deep in
them: none holds the event loop for longer than is promised.
"""

from collections.abc import Iterator
from copy import deepcopy

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tuneserve.oip import inference_pb2
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

from ..api.test_chat import TOOL, struct
from .test_loop import infer

FILES = (
    *(classification_pb2, embedding_pb2, answer_pb2, feedback_pb2, generation_pb2, monitor_pb2),
    *(model_pb2, model_admin_pb2, inference_pb2),
    *(health_pb2, reflection_pb2),
)
METHODS = [
    method for file in FILES for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods
]
every_method = pytest.mark.parametrize("method", METHODS, ids=[one.full_name.split(".", 2)[-1] for one in METHODS])
MOST_BYTES = (4 << 20) - 2000  # with all that goes around them
ANSWERS = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "FAILED_PRECONDITION", "ABORTED"}


def asked(served, method: MethodDescriptor) -> tuple[str, str]:
    """The address at which a method does its work, and its path."""
    is_for_administrators = method.containing_service.name == "ModelAdminService"
    address = served.app.admin_address if is_for_administrators else served.app.address
    return address, f"/{method.containing_service.full_name}/{method.name}"


def varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def filled(descriptor: Descriptor, seen: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
    """Messages as large as they may be, each of one field: as many as fit of the smallest it can hold, or one text."""
    for field in descriptor.fields:
        tag = varint(field.number << 3 | 2)
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES) and not field.is_repeated:
            yield field.name, tag + varint(MOST_BYTES) + b"x" * MOST_BYTES
        elif field.is_repeated and field.cpp_type not in (
            FieldDescriptor.CPPTYPE_STRING,
            FieldDescriptor.CPPTYPE_MESSAGE,
        ):
            yield field.name, tag + varint(MOST_BYTES) + bytes([1]) * MOST_BYTES
        elif field.is_repeated:
            # Empty; and of a byte, or of a field that nobody knows.
            for part in (b"\0", b"\x02\x78\x01" if field.message_type else b"\x01x"):
                yield f"{field.name} of {part!r}", (tag + part) * (MOST_BYTES // len(tag + part))
        if field.message_type and field.message_type.full_name not in seen:
            for name, inside in filled(field.message_type, (*seen, field.message_type.full_name)):
                yield f"{field.name}.{name}", tag + varint(len(inside)) + inside


INPUTS = [classification_pb2.ClassifyInput(text="good", text_pair="bad")]
EXAMPLES = [classification_pb2.ClassifyExample(text="good", label="bad")]
TENSOR = inference_pb2.ModelInferRequest.InferInputTensor(
    name="text",
    datatype="BYTES",
    shape=[1],
    parameters={"a": inference_pb2.InferParameter(string_param="a")},
    contents=inference_pb2.InferTensorContents(bytes_contents=[b"good"]),
)
INFERS = [
    infer("topics", ["good"]),
    infer("topics", ["good"], raw=True),
    infer("chat", ["good"], max_tokens=2),
    inference_pb2.ModelInferRequest(
        model_name="topics",
        model_version="1",
        id="1",
        inputs=[TENSOR],
        parameters={"priority": inference_pb2.InferParameter(string_param="1")},
        outputs=[
            inference_pb2.ModelInferRequest.InferRequestedOutputTensor(
                name="label", parameters={"a": inference_pb2.InferParameter(string_param="a")}
            )
        ],
    ),
]
DOCUMENT = answer_pb2.Document(id="1", title="a film", text="good", metadata={"a": "b"}, readers=["ann"], reply="bad")
CALL = struct(id="call 1", type="function", function={"name": "weather", "arguments": {"city": "Lisbon"}})
CHAT = generation_pb2.Chat(
    messages=[
        generation_pb2.ChatMessage(role="user", content="good", name="me"),
        generation_pb2.ChatMessage(role="assistant", tool_calls=[CALL]),
        generation_pb2.ChatMessage(role="tool", content="bad", tool_call_id="call 1"),
    ],
    tools=[struct(**TOOL)],
    documents=[struct(title="good")],
    template_arguments=struct(mode="good"),
    tool_choice=generation_pb2.ToolChoice(name="weather"),
)
PROMPTS = [generation_pb2.Prompt(text="good"), generation_pb2.Prompt(chat=CHAT)]
CONSTRAINTS = [{"json_schema": "{}"}, {"regex": "a"}, {"grammar": 'root ::= "a"'}, {"choice": {"options": ["a"]}}]


def generating() -> list[Message]:
    return [
        *(
            generation_pb2.GenerateRequest(model=model, prompt=prompt)
            for model in ("tools", "masked")
            for prompt in PROMPTS
        ),
        generation_pb2.GenerateRequest(
            model="chat", prompt=PROMPTS[0], sampling={"max_tokens": 2, "stop": ["a"]}, adapter="a"
        ),
        *(
            generation_pb2.GenerateRequest(
                model=model, prompt=PROMPTS[0], sampling={"max_tokens": 2, "stop": ["a"], "bad_words": ["b"], **more}
            )
            for model in ("chat", "masked")
            for more in ({}, *({"structured_output": one} for one in CONSTRAINTS))
        ),
    ]


def feedback() -> list[Message]:
    label = feedback_pb2.LabelFeedback(text="good", text_pair="bad", labels=["topic 1"])
    click = feedback_pb2.ClickFeedback(query="good", chosen="bad", ignored=["a film"])
    return [
        feedback_pb2.FeedbackRequest(request_id="r-1", model="topics", label=label),
        feedback_pb2.FeedbackRequest(request_id="r-1", model="vectors", click=click),
        *(
            feedback_pb2.FeedbackRequest(
                request_id="r-1",
                model=model,
                answer=feedback_pb2.AnswerFeedback(prompt=prompt, answer="good", correction="bad", good=True),
            )
            for model in ("tools", "masked")
            for prompt in PROMPTS
        ),
    ]


def right(method: MethodDescriptor, served) -> list[Message]:
    """What is right about a message of which one field is as large as it may be: where more than one kind of model
    answers, one message for each. Between them they have all texts that the method takes.
    """
    version = served.app.models.latest("chat").id
    alias = model_pb2.Alias(
        name="chat", targets=[model_pb2.AliasTarget(model=version, weight=1)], shadow=version, etag="1"
    )
    texts: dict[str, list[Message]] = {
        "Classify": [
            classification_pb2.ClassifyRequest(model="topics", inputs=INPUTS, thresholds={"topic 1": 0.5}),
            classification_pb2.ClassifyRequest(model="masked-topics", inputs=INPUTS),
            *(
                classification_pb2.ClassifyRequest(
                    model=model,
                    inputs=[{"text": "good"}],
                    labels=["good", "bad"],
                    examples=EXAMPLES,
                    instruction="?",
                )
                for model in ("chat", "masked")
            ),
        ],
        "ObserveStream": [
            monitor_pb2.ObserveStreamRequest(monitor=monitor, text="good") for monitor in ("news", "masked")
        ],
        "Examples": [monitor_pb2.ExamplesRequest(monitor="news", topic="topic 1", sentiment="pos")],
        "ClassifyTokens": [classification_pb2.ClassifyTokensRequest(model="ner", texts=["good"])],
        "Feedback": feedback(),
        "Rank": [classification_pb2.RankRequest(model="sentiment", query="good", candidates=["bad"], label="pos")],
        "Embed": [embedding_pb2.EmbedRequest(model="vectors", texts=["good"], prompt_name="query")],
        "UpsertDocuments": [answer_pb2.UpsertDocumentsRequest(index="docs", documents=[DOCUMENT])],
        "DeleteDocuments": [answer_pb2.DeleteDocumentsRequest(index="docs", ids=["1"])],
        "Search": [
            answer_pb2.SearchRequest(
                index="docs",
                query="good",
                readers=["ann"],
                filters=[answer_pb2.Filter(key="a", values=["b"])],
                liked=["1"],
                disliked=["2"],
            )
        ],
        "Answer": [
            answer_pb2.AnswerRequest(
                index="docs",
                messages=[answer_pb2.AnswerMessage(role="user", content="good")],
                readers=["ann"],
                filters=[answer_pb2.Filter(key="a", values=["b"])],
            )
        ],
        "Generate": generating(),
        "GenerateStream": generating(),
        "Tokenize": [
            generation_pb2.TokenizeRequest(model=model, prompt=prompt)
            for model in ("tools", "masked")
            for prompt in PROMPTS
        ],
        "ListModels": [model_pb2.ListModelsRequest(page_token="1")],
        "ListAliases": [model_pb2.ListAliasesRequest(page_token="1")],
        "GetModel": [model_pb2.GetModelRequest(model=version)],
        "WatchModel": [model_pb2.WatchModelRequest(model=version)],
        "LoadModel": [
            model_admin_pb2.LoadModelRequest(
                model="chat",
                path="empty",
                settings={
                    "dtype": "auto",
                    "redact": {"kinds": ["email"]},
                    "engine": {"kv_cache_dtype": "auto"},
                    "tool_parser": "hermes",
                    "reasoning_parser": "qwen3",
                },
            )
        ],
        "CancelLoad": [model_admin_pb2.CancelLoadRequest(model=version)],
        "UnloadModel": [model_admin_pb2.UnloadModelRequest(model=version)],
        "SetAlias": [model_admin_pb2.SetAliasRequest(alias=alias)],
        "DeleteAlias": [model_admin_pb2.DeleteAliasRequest(name="chat", etag="1")],
        "LoadAdapter": [model_admin_pb2.LoadAdapterRequest(model="chat", adapter="a", path="empty")],
        "UnloadAdapter": [model_admin_pb2.UnloadAdapterRequest(model="chat", adapter="a")],
        "ModelReady": [inference_pb2.ModelReadyRequest(name="chat", version="1")],
        "ModelMetadata": [inference_pb2.ModelMetadataRequest(name="chat", version="1")],
        "ModelInfer": INFERS,
        "ModelStreamInfer": INFERS,
        "Check": [health_pb2.HealthCheckRequest(service="models/chat")],
        "Watch": [health_pb2.HealthCheckRequest(service="models/chat")],
        "ServerReflectionInfo": [
            reflection_pb2.ServerReflectionRequest(host="a", file_by_filename="a"),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="a"),
            reflection_pb2.ServerReflectionRequest(
                file_containing_extension=reflection_pb2.ExtensionRequest(containing_type="a", extension_number=1)
            ),
            reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type="a"),
            reflection_pb2.ServerReflectionRequest(list_services="a"),
        ],
    }
    if method.name == "ClassifyStream":
        return [classification_pb2.ClassifyStreamRequest(request=one) for one in right(METHODS[0], served)]
    return texts.get(method.name, [])


@every_method
async def test_messages_of_one_field_as_large_as_they_may_be(large, soon, send, method):
    address, path = asked(large, method)
    # The first ones are of different models and prompts, the rest of other texts.
    for before in [one.SerializeToString() for one in right(method, large)[:4]] or [b""]:
        for name, data in filled(method.input_type):
            # Bytes behind bytes are the two messages merged.
            code, details = await soon(lambda data=before + data: send(address, path, [data]), name)
            assert code.name in ANSWERS, (name, details)


PIECES = ["x", "née 東 ", "[", "1 "]
TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def lengthened(message: Message) -> Iterator[tuple[str, Message]]:
    """A message with one of its texts, however deep in it, as long as it may be."""
    for field, value in message.ListFields():
        if is_map(field):
            for key in value:
                for piece in PIECES:
                    copy = deepcopy(message)
                    entries = getattr(copy, field.name)
                    if isinstance(value[key], Message):
                        entries[longest(piece)].CopyFrom(entries.pop(key))
                    else:
                        entries[longest(piece)] = entries.pop(key)
                    yield f"{field.name}: {piece!r} as key", copy
                for piece in PIECES if isinstance(value[key], str) else ():
                    copy = deepcopy(message)
                    getattr(copy, field.name)[key] = longest(piece)
                    yield f"{field.name}: {piece!r} as value", copy
                for name, inside in lengthened(value[key]) if isinstance(value[key], Message) else ():
                    copy = deepcopy(message)
                    getattr(copy, field.name)[key].CopyFrom(inside)
                    yield f"{field.name}.{name}", copy
        elif field.message_type:
            for index, one in enumerate(value if field.is_repeated else [value]):
                for name, inside in lengthened(one):
                    copy = deepcopy(message)
                    there = getattr(copy, field.name)
                    (there[index] if field.is_repeated else there).CopyFrom(inside)
                    yield f"{field.name}.{name}", copy
        elif field.type in TEXTS:
            for piece in PIECES:
                copy = deepcopy(message)
                text = longest(piece) if field.type == FieldDescriptor.TYPE_STRING else longest(piece).encode()
                if field.is_repeated:
                    getattr(copy, field.name)[0] = text
                else:
                    setattr(copy, field.name, text)
                yield f"{field.name}: {piece!r}", copy


def is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def longest(piece: str) -> str:
    return piece * (MOST_BYTES // len(piece.encode()))


@every_method
async def test_texts_as_long_as_they_may_be(large, soon, send, method):
    """With all that is right about the message around it, so that they are looked at."""
    address, path = asked(large, method)
    for one in right(method, large):
        for name, message in lengthened(one):
            data = message.SerializeToString()
            code, details = await soon(lambda data=data: send(address, path, [data]), name)
            assert code.name in ANSWERS, (name, details)


def texts_in(descriptor: Descriptor, seen: tuple[str, ...] = ()) -> Iterator[str]:
    """The names of all texts of a kind of message."""
    for field in descriptor.fields:
        if field.type in TEXTS:
            yield field.full_name
        if field.message_type and field.message_type.full_name not in seen:
            yield from texts_in(field.message_type, (*seen, field.message_type.full_name))


def texts_of(message: Message) -> Iterator[str]:
    """The names of those that are set."""
    for field, value in message.ListFields():
        if field.type in TEXTS:
            yield field.full_name
        if is_map(field):
            entry = field.message_type.fields_by_name
            yield from (entry[part].full_name for part in ("key", "value") if entry[part].type in TEXTS)
        if field.message_type:
            inside = value.values() if is_map(field) else value if field.is_repeated else [value]
            for one in inside:
                yield from texts_of(one) if isinstance(one, Message) else ()


@every_method
async def test_no_text_is_left_out(large, method):
    assert {name for one in right(method, large) for name in texts_of(one)} == set(texts_in(method.input_type))
