"""Somebody else's tooling: a client that knows nothing but reflection can call every RPC."""

import asyncio
import json

import grpc
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PROMPT = {"text": "the film"}
CALLS = {
    "tuneserve.v1.AnswerService/UpsertDocuments": {"index": "docs", "documents": [{"id": "1", "text": "good"}]},
    "tuneserve.v1.AnswerService/Search": {"index": "docs", "query": "good"},
    "tuneserve.v1.AnswerService/Answer": {"index": "docs", "messages": [{"role": "user", "content": "good"}]},
    "tuneserve.v1.AnswerService/DeleteDocuments": {"index": "docs", "ids": ["1"]},
    "tuneserve.v1.ClassificationService/Classify": {"model": "sentiment", "inputs": [{"text": "good"}]},
    "tuneserve.v1.ClassificationService/ClassifyTokens": {"model": "ner", "texts": ["angela merkel in hamburg"]},
    "tuneserve.v1.ClassificationService/ClassifyStream": {
        "id": 7,
        "request": {"model": "sentiment", "inputs": [{"text": "good"}]},
    },
    "tuneserve.v1.ClassificationService/Rank": {
        "model": "sentiment",
        "query": "good",
        "candidates": ["bad"],
        "label": "pos",
    },
    "tuneserve.v1.MonitorService/ObserveStream": {"id": 7, "monitor": "news", "text": "good"},
    "tuneserve.v1.MonitorService/Examples": {"monitor": "news", "topic": "a", "sentiment": "pos"},
    "tuneserve.v1.FeedbackService/Feedback": {
        "request_id": "r-1",
        "model": "sentiment",
        "label": {"text": "good", "labels": ["pos"]},
    },
    "tuneserve.v1.EmbeddingService/Embed": {"model": "vectors", "texts": ["good"]},
    "tuneserve.v1.GenerationService/Generate": {"model": "chat", "prompt": PROMPT, "sampling": {"max_tokens": 2}},
    "tuneserve.v1.GenerationService/GenerateStream": {"model": "chat", "prompt": PROMPT, "sampling": {"max_tokens": 2}},
    "tuneserve.v1.GenerationService/Tokenize": {"model": "chat", "prompt": PROMPT},
    "tuneserve.v1.ModelService/ListModels": {},
    "tuneserve.v1.ModelService/ListAliases": {},
    "tuneserve.v1.ModelService/GetModel": {"model": "chat"},
    "tuneserve.v1.ModelService/WatchModel": {"model": "chat"},
}
# Tested with their own port, in test_operations.py.
ADMIN = {f"tuneserve.v1.ModelAdminService/{name}Model" for name in ("Load", "Unload")} | {
    f"tuneserve.v1.ModelAdminService/{name}"
    for name in ("CancelLoad", "SetAlias", "DeleteAlias", "LoadAdapter", "UnloadAdapter")
}


def call_by_reflection(address: str, name: str, fields: dict) -> list[dict]:
    """Calls `package.Service/Method` with a request given as JSON, as grpcurl does."""
    service_name, method_name = name.split("/")
    with grpc.insecure_channel(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        method = pool.FindServiceByName(service_name).methods_by_name[method_name]
        request = message_factory.GetMessageClass(method.input_type)()
        json_format.Parse(json.dumps(fields), request, descriptor_pool=pool)
        response = message_factory.GetMessageClass(method.output_type)
        sent = "stream" if method.client_streaming else "unary"
        received = "stream" if method.server_streaming else "unary"
        kind = getattr(channel, f"{sent}_{received}")
        call = kind(
            f"/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        answer = call(iter([request]) if method.client_streaming else request, timeout=20)
        return [json_format.MessageToDict(message) for message in (answer if method.server_streaming else [answer])]


async def test_every_rpc_is_covered(served):
    def methods() -> set[str]:
        with grpc.insecure_channel(served.app.address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            ours = [name for name in database.get_services() if name.startswith("tuneserve.")]
            return {f"{name}/{method}" for name in ours for method in pool.FindServiceByName(name).methods_by_name}

    assert await asyncio.to_thread(methods) == set(CALLS) | ADMIN


@pytest.mark.parametrize("name", CALLS)
async def test_call(served, name):
    answers = await asyncio.to_thread(call_by_reflection, served.app.address, name, CALLS[name])
    assert answers
    assert answers[0]
