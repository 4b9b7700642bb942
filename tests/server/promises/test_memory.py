"""A call takes memory by what it sends, not by how often something of it is used."""

import tracemalloc
from collections.abc import AsyncIterator

import grpc
import pytest

from tuneserve.oip import inference_pb2
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.v1 import classification_pb2 as pb

RANK, INFER = "/tuneserve.v1.ClassificationService/Rank", "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
async def server(serve_config, make_bert) -> AsyncIterator:
    """One with a classifier."""
    models = {"sentiment": ModelConfig(make_bert("ForSequenceClassification", ["negative", "positive"]))}
    async with serve_config(ServerConfig(models, listen="127.0.0.1:0", metrics_listen="127.0.0.1:0")) as served:
        yield served


async def test_a_long_query_is_kept_once(server, send):
    """Not once for each candidate: a message of two megabytes took two gigabytes."""
    query = "the film was good " * 100_000
    message = pb.RankRequest(
        model="sentiment", query=query, candidates=["good"] * 500, label="positive", truncation=pb.TRUNCATION_END
    ).SerializeToString()
    tracemalloc.start()
    try:
        code, details = await send(server.app.address, RANK, [message])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert code == grpc.StatusCode.OK, details
    assert most < 20 * len(query)


async def test_an_id_that_each_answer_repeats_is_short(server, send):
    """A stream's every token would carry it: 78 MB of requests were answered with 1.8 GB."""
    request = inference_pb2.ModelInferRequest(model_name="sentiment", id="i" * 1025)
    request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"good")
    code, details = await send(server.app.address, INFER, [request.SerializeToString()])
    assert (code, details.split(" (")[0]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "id: has 1025 characters; allowed: 1024",
    )
    request.id = "i" * 1024
    code, details = await send(server.app.address, INFER, [request.SerializeToString()])
    assert code == grpc.StatusCode.OK, details
