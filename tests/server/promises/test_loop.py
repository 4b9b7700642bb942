"""No message that is allowed holds the event loop for longer than 100 ms: every call at its limits, and beyond them.

Nor does tokenizing one caller's texts keep another's waiting: it is bounded by what the model reads, whatever is sent.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tuneserve.oip import inference_pb2
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.v1 import classification_pb2, common_pb2, embedding_pb2, generation_pb2, model_admin_pb2, model_pb2

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
                path=make_bert("ForSequenceClassification", ["neg", "pos"], max_position_embeddings=LENGTH)
            ),
            "topics": ModelConfig(
                path=make_bert(
                    "ForSequenceClassification",
                    [f"topic {number}" for number in range(1000)],
                    max_position_embeddings=LENGTH,
                )
            ),
            "ner": ModelConfig(path=make_bert("ForTokenClassification", NER_LABELS, max_position_embeddings=LENGTH)),
            "vectors": ModelConfig(path=make_bert("Model", [], max_position_embeddings=LENGTH)),
            "chat": ModelConfig(path=make_llama(max_position_embeddings=4 * LENGTH)),
        },
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        admin_listen="127.0.0.1:0",
    )
    async with serve_config(config) as served:
        yield served


@pytest.mark.parametrize("method", ["Tokenize", "Generate", "GenerateStream"])
@pytest.mark.parametrize(("count", "told"), [(1 << 20, "prompt.token_ids.ids"), (4_100_000, "bytes of numbers in one")])
async def test_megabytes_of_token_ids(large, unheld, send, method, count, told):
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5] * count))
    kind = generation_pb2.TokenizeRequest if method == "Tokenize" else generation_pb2.GenerateRequest
    message = kind(model="chat", prompt=prompt).SerializeToString()
    async with unheld():
        code, details = await send(large.app.address, GENERATION + method, [message])
    assert code == grpc.StatusCode.INVALID_ARGUMENT, details
    assert told in details


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
        for name in ("_whole", "_truncating"):
            backends.append(Counting(getattr(model.tokenizer, name)))
            monkeypatch.setattr(model.tokenizer, name, backends[-1])
    return lambda: sum(backend.characters for backend in backends)


def rank(truncation: common_pb2.Truncation) -> classification_pb2.RankRequest:
    query, candidates = TEXT * (65536 // len(TEXT)), [f"{TEXT}{number}" for number in range(64)]
    return classification_pb2.RankRequest(
        model="sentiment", query=query, candidates=candidates, label="pos", truncation=truncation
    )


def zero_shot() -> classification_pb2.ClassifyRequest:
    labels = [f"label {number}" for number in range(256)]
    inputs = [classification_pb2.ClassifyInput(text="good")]
    return classification_pb2.ClassifyRequest(model="chat", inputs=inputs, labels=labels, instruction="x " * 8192)


PROMPT = generation_pb2.Prompt(text="x y " * 1_000_000)
EXPENSIVE = {
    "a long query": ("Rank", rank(common_pb2.TRUNCATION_REJECT), 30_000),
    "a long query, truncated": ("Rank", rank(common_pb2.TRUNCATION_END), 60_000),
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


MANY_ENTITIES = classification_pb2.ClassifyTokensRequest(model="ner", texts=["a " * 500] * 1024)
LIMITS = {
    "entities": (
        "Classification",
        "ClassifyTokens",
        classification_pb2.ClassifyTokensRequest(
            model="ner", texts=[FULL] * 256, offset_unit=common_pb2.OFFSET_UNIT_UTF16
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
            truncation=common_pb2.TRUNCATION_WINDOWS,
            offset_unit=common_pb2.OFFSET_UNIT_UTF8_BYTE,
        ),
    ),
    "labels": (
        "Classification",
        "Classify",
        classification_pb2.ClassifyRequest(model="topics", inputs=[classification_pb2.ClassifyInput(text=FULL)] * 1024),
    ),
    "vectors": ("Embedding", "Embed", embedding_pb2.EmbedRequest(model="vectors", texts=[FULL] * 1024)),
    "candidates": (
        "Classification",
        "Rank",
        classification_pb2.RankRequest(
            model="sentiment", query="good " * 300, candidates=["bad " * 190] * 1024, label="pos"
        ),
    ),
    "words": (
        "Classification",
        "Classify",
        classification_pb2.ClassifyRequest(
            model="sentiment",
            inputs=[classification_pb2.ClassifyInput(text="née good " * 64)] * 8,
            explain={},
            offset_unit=common_pb2.OFFSET_UNIT_UTF8_BYTE,
        ),
    ),
    "labels of the call": (
        "Classification",
        "Classify",
        classification_pb2.ClassifyRequest(
            model="chat",
            inputs=[classification_pb2.ClassifyInput(text="good " * 9)] * 20,
            labels=[f"l{number}" for number in range(200)],
            examples=[classification_pb2.ClassifyExample(text="good", label="l7")] * 20,
        ),
    ),
    "messages": (
        "Generation",
        "Tokenize",
        generation_pb2.TokenizeRequest(
            model="chat",
            prompt=generation_pb2.Prompt(
                chat=generation_pb2.Chat(messages=[generation_pb2.ChatMessage(role="user", content="good film")] * 2000)
            ),
        ),
    ),
    "a stream": (
        "Generation",
        "GenerateStream",
        generation_pb2.GenerateRequest(
            model="chat",
            prompt=generation_pb2.Prompt(text="good"),
            sampling=generation_pb2.SamplingParams(n=128, max_tokens=30, logprobs=20),
        ),
    ),
    "log probabilities": ("Generation", "Generate", sampling(n=6, max_tokens=1000, logprobs=20)),
    "log probabilities of many": ("Generation", "Generate", sampling(n=128, max_tokens=48, logprobs=20)),
    "log probabilities, few each": ("Generation", "Generate", sampling(n=128, max_tokens=512, logprobs=1)),
    "many entities": ("Classification", "ClassifyTokens", MANY_ENTITIES),
    "a label each": (
        "Classification",
        "Classify",
        classification_pb2.ClassifyRequest(
            model="topics", inputs=[classification_pb2.ClassifyInput(text="good")] * 1024, top_k=1
        ),
    ),
}


def infer(model: str, texts: Sequence[str], raw: bool = False, **parameters: int) -> inference_pb2.ModelInferRequest:
    request = inference_pb2.ModelInferRequest(model_name=model)
    name = "text_input" if model == "chat" else "text"
    tensor = request.inputs.add(name=name, datatype="BYTES", shape=[len(texts)])
    values = [text.encode() for text in texts]
    if raw:
        request.raw_input_contents.append(b"".join(len(value).to_bytes(4, "little") + value for value in values))
    else:
        tensor.contents.bytes_contents.extend(values)
    for key, value in parameters.items():
        request.parameters[key].int64_param = value
    return request


INFER = "/inference.GRPCInferenceService/ModelInfer"
TENSORS = {
    "labels": ("topics", ["good"] * 1024),
    "entities": ("ner", list(MANY_ENTITIES.texts)[:700]),
    "vectors": ("vectors", ["good"] * 1024),
    "completions": ("chat", ["good"] * 1024, {"max_tokens": 5}),
    "completions of one": ("chat", ["good"], {"max_tokens": 50, "n": 128}),
}


@pytest.mark.parametrize(
    ("method", "model"), [("ModelInfer", "topics"), ("ModelStreamInfer", "ner"), ("ModelInfer", "vectors")]
)
async def test_tensors_at_their_limits(large, unheld, send, method, model):
    request = infer(model, [FULL] * 256 if model == "ner" else ["good film"] * 1024)
    async with unheld():
        code, details = await send(
            large.app.address, f"/inference.GRPCInferenceService/{method}", [request.SerializeToString()]
        )
    assert code == grpc.StatusCode.OK, details


async def test_a_stream_of_calls_at_their_limits(large, unheld, send):
    inputs = [classification_pb2.ClassifyInput(text="good film")] * 500
    request = classification_pb2.ClassifyRequest(model="sentiment", inputs=inputs)
    messages = [
        classification_pb2.ClassifyStreamRequest(id=number, request=request).SerializeToString() for number in range(40)
    ]
    async with unheld():
        code, details = await send(large.app.address, CLASSIFICATION + "ClassifyStream", messages)
    assert code == grpc.StatusCode.OK, details


@pytest.mark.parametrize("name", LIMITS)
async def test_calls_at_their_limits(large, unheld, send, name):
    service, method, request = LIMITS[name]
    async with unheld():
        code, details = await send(
            large.app.address, f"/tuneserve.v1.{service}Service/{method}", [request.SerializeToString()]
        )
    assert code == grpc.StatusCode.OK, details


@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
@pytest.mark.parametrize("name", TENSORS)
async def test_small_tensors_that_make_large_ones(large, unheld, send, name, raw):
    model, texts, *parameters = TENSORS[name]
    message = infer(model, texts, raw, **dict(*parameters)).SerializeToString()
    async with unheld():
        code, details = await send(large.app.address, INFER, [message])
    assert code == grpc.StatusCode.OK, details


async def test_an_answer_is_refused_before_it_is_written(large, unheld, send):
    message = infer("ner", list(MANY_ENTITIES.texts)).SerializeToString()
    async with unheld():
        code, details = await send(large.app.address, INFER, [message])
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "has an answer of" in details


async def test_completions_of_several_prompts_are_as_many_as_texts_may_be(large, send):
    """One request of 14 KB made 131,072 of them, and held the loop for 0.6 s to write them down."""
    code, details = await send(large.app.address, INFER, [infer("chat", ["a"] * 1024, n=2).SerializeToString()])
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("inputs[0] (text_input): would make 2048 completions; allowed: 1024 of several prompts")


def ask_at_once(address: str, method: str, message: bytes, count: int) -> Counter[grpc.StatusCode]:
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        call = channel.unary_unary(method)
        return Counter(one.code() for one in [call.future(message, timeout=120) for _ in range(count)])


@pytest.mark.parametrize("name", ["log probabilities of many", "a label each", "labels"])
async def test_many_calls_at_their_limits_hold_the_loop_no_longer_than_one(large, unheld, name):
    """Each gave way after ten milliseconds, and forty of them made everybody wait for seconds."""
    service, method, request = LIMITS[name]
    if name == "labels":
        request = classification_pb2.ClassifyRequest(model="topics", inputs=[{"text": "good"}] * 1024)
    async with unheld():
        codes = await asyncio.to_thread(
            ask_at_once,
            large.app.address,
            f"/tuneserve.v1.{service}Service/{method}",
            request.SerializeToString(),
            20,
        )
    # What is too much for one caller is turned away: a thousand inputs of a thousand labels are 20 MB.
    assert codes.keys() <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes[grpc.StatusCode.OK] >= (1 if name == "labels" else 20)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 128, "max_tokens": 1000, "logprobs": 20}, "logprobs"),
        ({"n": 128, "max_tokens": 1000, "logprobs": 1}, "logprobs"),
        ({"max_tokens": 5, "prompt_logprobs": 10}, None),
        ({"max_tokens": 5, "prompt_logprobs": 11}, "prompt_logprobs"),
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


async def test_a_part_of_a_character_counts_as_four_tokens(large, send):
    """vLLM makes their texts on the event loop, and looks at the tokens before each."""
    request = generation_pb2.GenerateRequest(model="chat", prompt=generation_pb2.Prompt(text="é" * 350 + "goo"))
    request.sampling.CopyFrom(generation_pb2.SamplingParams(max_tokens=1, prompt_logprobs=1))
    address, method = large.app.address, "/tuneserve.v1.GenerationService/Generate"
    code, details = await send(address, method, [request.SerializeToString()])
    assert code == grpc.StatusCode.OK, details
    request.sampling.prompt_logprobs = 2
    code, details = await send(address, method, [request.SerializeToString()])
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(
        "sampling.prompt_logprobs: is 2 for 702 tokens, 700 of them parts of characters, which count 4 times: "
        "8406 log probabilities; allowed: 8192 in one answer"
    )


FILES = (classification_pb2, embedding_pb2, generation_pb2, model_pb2, model_admin_pb2, inference_pb2)
METHODS = [
    method for file in FILES for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods
]
MOST_BYTES = (4 << 20) - 100  # with all that goes around them


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
            if seen:
                continue  # soon parsed, and looked at as those further out are
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


INPUTS = [classification_pb2.ClassifyInput(text="good")]
TENSOR = inference_pb2.ModelInferRequest.InferInputTensor(
    name="text", datatype="BYTES", shape=[1], contents=inference_pb2.InferTensorContents(bytes_contents=[b"good"])
)
# What is right about a message of which one field is as large as it may be: where more than one kind of model answers,
# one message for each.
RIGHT: dict[str, list[Message]] = {
    "Classify": [
        classification_pb2.ClassifyRequest(model="topics", inputs=INPUTS),
        classification_pb2.ClassifyRequest(model="chat", inputs=INPUTS, labels=["good", "bad"]),
    ],
    "ClassifyStream": [
        classification_pb2.ClassifyStreamRequest(
            request=classification_pb2.ClassifyRequest(model="topics", inputs=INPUTS)
        )
    ],
    "ClassifyTokens": [classification_pb2.ClassifyTokensRequest(model="ner", texts=["good"])],
    "Rank": [classification_pb2.RankRequest(model="sentiment", query="good", candidates=["bad"], label="pos")],
    "Embed": [embedding_pb2.EmbedRequest(model="vectors", texts=["good"])],
    "Generate": [generation_pb2.GenerateRequest(model="chat")],
    "GenerateStream": [generation_pb2.GenerateRequest(model="chat")],
    "Tokenize": [generation_pb2.TokenizeRequest(model="chat")],
    "ModelInfer": [inference_pb2.ModelInferRequest(model_name="topics", inputs=[TENSOR])],
    "ModelStreamInfer": [inference_pb2.ModelInferRequest(model_name="topics", inputs=[TENSOR])],
}


@pytest.mark.parametrize("method", METHODS, ids=[method.full_name.split(".", 2)[-1] for method in METHODS])
async def test_messages_of_one_field_as_large_as_they_may_be(large, soon, send, method):
    path = f"/{method.containing_service.full_name}/{method.name}"
    for right in RIGHT.get(method.name, [None]):
        before = right.SerializeToString() if right else b""
        for name, data in filled(method.input_type):
            # Bytes behind bytes are the two messages merged.
            code, details = await soon(lambda data=before + data: send(large.app.address, path, [data]), name)
            assert code.name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "PERMISSION_DENIED"), details
