"""No message that is allowed holds the event loop for longer than 100 ms: every call at its limits, and beyond them.

Nor does tokenizing one caller's texts keep another's waiting: it is bounded by what the model reads, whatever is sent.
"""

from collections.abc import AsyncIterator

import grpc
import pytest

from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.v1 import classification_pb2, embedding_pb2, generation_pb2

CLASSIFICATION, GENERATION = "/tuneserve.v1.ClassificationService/", "/tuneserve.v1.GenerationService/"
LENGTH = 512
NER_LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXT = "the film was good, angela merkel née in hamburg! "


@pytest.fixture(scope="session")
async def large(serve_config, make_bert, make_llama) -> AsyncIterator:
    """A server whose models read as much as real ones."""
    config = ServerConfig(
        models={
            "sentiment": ModelConfig(
                make_bert("ForSequenceClassification", ["neg", "pos"], max_position_embeddings=LENGTH)
            ),
            "topics": ModelConfig(
                make_bert(
                    "ForSequenceClassification",
                    [f"topic {number}" for number in range(200)],
                    max_position_embeddings=LENGTH,
                )
            ),
            "ner": ModelConfig(make_bert("ForTokenClassification", NER_LABELS, max_position_embeddings=LENGTH)),
            "vectors": ModelConfig(make_bert("Model", [], max_position_embeddings=LENGTH)),
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


FULL = "good bad great awful " * 125  # 500 tokens, most of them entities in the eyes of the fake engine


def sampling(**fields) -> generation_pb2.GenerateRequest:
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5] * 700))
    return generation_pb2.GenerateRequest(model="chat", prompt=prompt, sampling=generation_pb2.SamplingParams(**fields))


LIMITS = {
    "entities": (
        "Classification",
        "ClassifyTokens",
        classification_pb2.ClassifyTokensRequest(
            model="ner", texts=[FULL] * 256, offset_unit=classification_pb2.OFFSET_UNIT_UTF16
        ),
    ),
    "entities of words": (
        "Classification",
        "ClassifyTokens",
        classification_pb2.ClassifyTokensRequest(
            model="ner", texts=[FULL] * 256, aggregation=classification_pb2.AGGREGATION_MAX
        ),
    ),
    "entities in windows": (
        "Classification",
        "ClassifyTokens",
        classification_pb2.ClassifyTokensRequest(
            model="ner",
            texts=["née " + FULL * 200],
            truncation=classification_pb2.TRUNCATION_WINDOWS,
            offset_unit=classification_pb2.OFFSET_UNIT_UTF8_BYTE,
        ),
    ),
    "labels": (
        "Classification",
        "Classify",
        classification_pb2.ClassifyRequest(model="topics", inputs=[classification_pb2.ClassifyInput(text=FULL)] * 1024),
    ),
    "vectors": ("Embedding", "Embed", embedding_pb2.EmbedRequest(model="vectors", texts=[FULL] * 1024)),
    "log probabilities": ("Generation", "Generate", sampling(n=6, max_tokens=1000, logprobs=20)),
}


@pytest.mark.parametrize("name", LIMITS)
async def test_calls_at_their_limits(large, unheld, send, name):
    service, method, request = LIMITS[name]
    async with unheld():
        code, details = await send(
            large.app.address, f"/tuneserve.v1.{service}Service/{method}", [request.SerializeToString()]
        )
    assert code == grpc.StatusCode.OK, details


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 128, "max_tokens": 1000, "logprobs": 20}, "logprobs"),
        ({"n": 128, "max_tokens": 1000, "logprobs": 1}, "logprobs"),
        ({"max_tokens": 5, "prompt_logprobs": 20}, None),
        ({"n": 6, "max_tokens": 1000, "logprobs": 20}, None),
    ],
)
async def test_log_probabilities_are_bounded_by_what_a_call_may_ask_for(large, send, fields, field):
    address, method = large.app.address, "/tuneserve.v1.GenerationService/Generate"
    code, details = await send(address, method, [sampling(**fields).SerializeToString()])
    if field is None:
        assert code == grpc.StatusCode.OK, details
    else:
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith(f"sampling.{field}: is {fields[field]} for")
