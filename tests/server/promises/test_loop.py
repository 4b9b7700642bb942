"""No message that is allowed holds the event loop for longer than 100 ms: every call at its limits, and beyond them.

Nor does tokenizing one caller's texts keep another's waiting: it is bounded by what the model reads, whatever is sent.
"""

from collections.abc import AsyncIterator

import grpc
import pytest

from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.v1 import classification_pb2, generation_pb2

CLASSIFICATION, GENERATION = "/tuneserve.v1.ClassificationService/", "/tuneserve.v1.GenerationService/"
LENGTH = 512
TEXT = "the film was good, angela merkel née in hamburg! "


@pytest.fixture(scope="session")
async def large(serve_config, make_bert, make_llama) -> AsyncIterator:
    """A server whose models read as much as real ones."""
    config = ServerConfig(
        models={
            "sentiment": ModelConfig(
                make_bert("ForSequenceClassification", ["neg", "pos"], max_position_embeddings=LENGTH)
            ),
            "chat": ModelConfig(make_llama(max_position_embeddings=4 * LENGTH)),
        },
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        admin_listen="127.0.0.1:0",
    )
    async with serve_config(config) as served:
        yield served


@pytest.mark.parametrize("method", ["Tokenize", "Generate", "GenerateStream"])
async def test_two_megabytes_of_token_ids(large, unheld, send, method):
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5] * (2 << 20)))
    message = getattr(generation_pb2, f"{method}Request")(model="chat", prompt=prompt).SerializeToString()
    async with unheld():
        code, details = await send(large.app.address, GENERATION + method, [message])
    assert code == grpc.StatusCode.INVALID_ARGUMENT, details
    assert "prompt.token_ids.ids" in details


class Counting:
    """A real tokenizer that counts the characters it is given."""

    def __init__(self, backend) -> None:
        self._backend = backend
        self.characters = 0

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def encode_batch(self, texts, **options):
        self.characters += sum(len(part) for one in texts for part in ([one] if isinstance(one, str) else one))
        return self._backend.encode_batch(texts, **options)


@pytest.fixture
def tokenized(large, monkeypatch):
    """How many characters were tokenized since the test began."""
    backends = []
    for model in large.app.models:
        for name in ("_whole", "_cut"):
            backends.append(Counting(getattr(model.tokenizer, name)))
            monkeypatch.setattr(model.tokenizer, name, backends[-1])
    return lambda: sum(backend.characters for backend in backends)


def rank(truncation: classification_pb2.Truncation) -> classification_pb2.RankRequest:
    query, candidates = TEXT * (65536 // len(TEXT)), [f"{TEXT}{number}" for number in range(64)]
    return classification_pb2.RankRequest(
        model="sentiment", query=query, candidates=candidates, label="pos", truncation=truncation
    )


def zero_shot() -> classification_pb2.ClassifyRequest:
    labels = [f"label {number}" for number in range(256)]
    inputs = [classification_pb2.ClassifyInput(text="good")]
    return classification_pb2.ClassifyRequest(model="chat", inputs=inputs, labels=labels, instruction="x " * 8192)


PROMPT = generation_pb2.Prompt(text="x y " * (1 << 20))
EXPENSIVE = {
    "a long query": ("Rank", rank(classification_pb2.TRUNCATION_REJECT), 30_000),
    "a long query, truncated": ("Rank", rank(classification_pb2.TRUNCATION_END), 60_000),
    "a long instruction": ("Classify", zero_shot(), 150_000),
    "a long text": (
        "Classify",
        classification_pb2.ClassifyRequest(
            model="sentiment", inputs=[classification_pb2.ClassifyInput(text=TEXT * 80_000)]
        ),
        30_000,
    ),
    "a long prompt": ("Generate", generation_pb2.GenerateRequest(model="chat", prompt=PROMPT), 60_000),
    "a long prompt to tokenize": ("Tokenize", generation_pb2.TokenizeRequest(model="chat", prompt=PROMPT), 400_000),
}


@pytest.mark.parametrize("name", EXPENSIVE)
async def test_no_message_costs_more_tokenizing_than_the_model_reads(large, unheld, send, tokenized, name):
    method, request, most = EXPENSIVE[name]
    service = (
        CLASSIFICATION
        if isinstance(request, classification_pb2.ClassifyRequest | classification_pb2.RankRequest)
        else GENERATION
    )
    async with unheld():
        code, details = await send(large.app.address, service + method, [request.SerializeToString()])
    assert code == (grpc.StatusCode.OK if "truncated" in name else grpc.StatusCode.INVALID_ARGUMENT), details
    assert tokenized() <= most
