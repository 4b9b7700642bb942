"""No message that is allowed holds the event loop for longer than 100 ms: every call at its limits, and beyond them."""

from collections.abc import AsyncIterator

import grpc
import pytest

from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.v1 import generation_pb2

GENERATION = "/tuneserve.v1.GenerationService/"
LENGTH = 2048


@pytest.fixture(scope="session")
async def large(serve_config, make_llama) -> AsyncIterator:
    """A server whose models read as much as real ones."""
    config = ServerConfig(
        models={"chat": ModelConfig(make_llama(max_position_embeddings=LENGTH))},
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        admin_listen="127.0.0.1:0",
    )
    async with serve_config(config) as served:
        yield served


@pytest.mark.parametrize("method", ["Tokenize", "Generate", "GenerateStream"])
async def test_two_megabytes_of_token_ids(large, unheld, send, method):
    request = generation_pb2.GenerateRequest if method == "Generate" else generation_pb2.GenerateStreamRequest
    request = generation_pb2.TokenizeRequest if method == "Tokenize" else request
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5] * (2 << 20)))
    message = request(model="chat", prompt=prompt).SerializeToString()
    async with unheld():
        code, details = await send(large.app.address, GENERATION + method, [message])
    assert code == grpc.StatusCode.INVALID_ARGUMENT, details
    assert "prompt.token_ids.ids" in details
