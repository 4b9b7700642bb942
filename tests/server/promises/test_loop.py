"""No message that is allowed holds the event loop for longer than 100 ms: every call at its limits, and beyond them.

Nor does tokenizing one caller's texts keep another's waiting: it is bounded by what the model reads, whatever is sent.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tuneserve.oip import inference_pb2
from tuneserve.v1 import classification_pb2, common_pb2, embedding_pb2, generation_pb2, model_pb2

from ..api.test_chat import TOOL, struct
from .conftest import LENGTH

CLASSIFICATION, GENERATION = "/tuneserve.v1.ClassificationService/", "/tuneserve.v1.GenerationService/"
TEXT = "the film was good, angela merkel née in hamburg! "


@pytest.mark.parametrize("method", ["Tokenize", "Generate", "GenerateStream"])
@pytest.mark.parametrize(("count", "told"), [(1 << 20, "prompt.token_ids.ids"), (4_100_000, "bytes of numbers in one")])
async def test_megabytes_of_token_ids(large, soon, send, method, count, told):
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5] * count))
    kind = generation_pb2.TokenizeRequest if method == "Tokenize" else generation_pb2.GenerateRequest
    message = kind(model="chat", prompt=prompt).SerializeToString()
    code, details = await soon(lambda: send(large.app.address, GENERATION + method, [message]))
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
async def test_no_message_costs_more_tokenizing_than_the_model_reads(large, soon, send, tokenized, name):
    method, request, most = EXPENSIVE[name]
    service = (
        CLASSIFICATION
        if isinstance(request, classification_pb2.ClassifyRequest | classification_pb2.RankRequest)
        else GENERATION
    )
    message = request.SerializeToString()
    costs = []

    async def call():
        before = tokenized()
        answer = await send(large.app.address, service + method, [message])
        costs.append(tokenized() - before)
        return answer

    code, details = await soon(call, name)
    assert code == (grpc.StatusCode.OK if "truncated" in name else grpc.StatusCode.INVALID_ARGUMENT), details
    assert max(costs) <= most


FULL = "good bad great awful " * 125  # 500 tokens, most of them entities in the eyes of the fake engine


def sampling(**fields) -> generation_pb2.GenerateRequest:
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5] * 700))
    return generation_pb2.GenerateRequest(model="chat", prompt=prompt, sampling=generation_pb2.SamplingParams(**fields))


MOST_IN_WINDOWS = 1024 * (LENGTH - 2)  # tokens of a text
MANY_ENTITIES = classification_pb2.ClassifyTokensRequest(model="ner", texts=["a " * 500] * 1024)
MOST_TOKENIZED = 65536
# What is masked at the highest cost: see test_recognizers.py.
NUMBERS = ("1234567 ", "(0301) 90 18-20/44 ", "4111 1111 1111 1112 ", "212 555 0123, ", "AB12 ", "1.2.3.4.5.6.7.", "a@")
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
    **{
        f"entities in windows, {how}": (
            "Classification",
            "ClassifyTokens",
            classification_pb2.ClassifyTokensRequest(
                model="ner",
                texts=["née " + FULL * (MOST_IN_WINDOWS // 500)],
                truncation=common_pb2.TRUNCATION_WINDOWS,
                windows=classification_pb2.Windows(overlap=0),
                offset_unit=common_pb2.OFFSET_UNIT_UTF8_BYTE,
                aggregation=aggregation,
            ),
        )
        for how, aggregation in (
            ("simple", classification_pb2.AGGREGATION_SIMPLE),
            ("of words", classification_pb2.AGGREGATION_MAX),
        )
    },
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
    "tokens": (
        "Generation",
        "Tokenize",
        generation_pb2.TokenizeRequest(
            model="chat",
            # Four tokens each, and two units of UTF-16.
            prompt=generation_pb2.Prompt(text="🙂" * (MOST_TOKENIZED // 4)),
            offset_unit=common_pb2.OFFSET_UNIT_UTF16,
        ),
    ),
    "token ids": (
        "Generation",
        "Tokenize",
        generation_pb2.TokenizeRequest(
            model="chat", prompt=generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5] * MOST_TOKENIZED))
        ),
    ),
    "masked texts": (
        "Classification",
        "Classify",
        classification_pb2.ClassifyRequest(
            model="masked-topics",
            inputs=[classification_pb2.ClassifyInput(text=(piece * 20_000)[:20_000]) for piece in NUMBERS],
            truncation=common_pb2.TRUNCATION_END,
        ),
    ),
    "short masked texts": (
        "Classification",
        "Classify",
        classification_pb2.ClassifyRequest(
            model="masked-topics", inputs=[classification_pb2.ClassifyInput(text="née, 212 555 0123")] * 1024
        ),
    ),
    "masked tools": (
        "Generation",
        "Tokenize",
        generation_pb2.TokenizeRequest(
            model="masked",
            prompt=generation_pb2.Prompt(
                chat=generation_pb2.Chat(
                    messages=[generation_pb2.ChatMessage(role="user", content="good")],
                    tools=[struct(**TOOL, **{f"key {index}": "212 555 0123" for index in range(2000)})],
                )
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
async def test_tensors_at_their_limits(large, soon, send, method, model):
    request = infer(model, [FULL] * 256 if model == "ner" else ["good film"] * 1024)
    message = request.SerializeToString()
    code, details = await soon(lambda: send(large.app.address, f"/inference.GRPCInferenceService/{method}", [message]))
    assert code == grpc.StatusCode.OK, details


async def test_a_stream_of_calls_at_their_limits(large, soon, send):
    inputs = [classification_pb2.ClassifyInput(text="good film")] * 500
    request = classification_pb2.ClassifyRequest(model="sentiment", inputs=inputs)
    messages = [
        classification_pb2.ClassifyStreamRequest(id=number, request=request).SerializeToString() for number in range(40)
    ]
    code, details = await soon(lambda: send(large.app.address, CLASSIFICATION + "ClassifyStream", messages))
    assert code == grpc.StatusCode.OK, details


@pytest.mark.parametrize("name", LIMITS)
async def test_calls_at_their_limits(large, soon, send, name):
    service, method, request = LIMITS[name]
    message = request.SerializeToString()
    code, details = await soon(lambda: send(large.app.address, f"/tuneserve.v1.{service}Service/{method}", [message]))
    assert code == grpc.StatusCode.OK, details


MODELS, OIP = "/tuneserve.v1.ModelService/", "/inference.GRPCInferenceService/"
HEALTH = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/"
REFLECTION = f"/{reflection_pb2.DESCRIPTOR.services_by_name['ServerReflection'].full_name}/"
WATCHED = health_pb2.HealthCheckRequest(service="models/topics")
# Of a model with a thousand labels.
DESCRIPTIONS: dict[str, Message] = {
    f"{MODELS}ListModels": model_pb2.ListModelsRequest(page_size=1000),
    f"{MODELS}ListAliases": model_pb2.ListAliasesRequest(page_size=1000),
    f"{MODELS}GetModel": model_pb2.GetModelRequest(model="topics"),
    f"{MODELS}WatchModel": model_pb2.WatchModelRequest(model="topics"),
    f"{OIP}ServerLive": inference_pb2.ServerLiveRequest(),
    f"{OIP}ServerReady": inference_pb2.ServerReadyRequest(),
    f"{OIP}ServerMetadata": inference_pb2.ServerMetadataRequest(),
    f"{OIP}ModelReady": inference_pb2.ModelReadyRequest(name="topics"),
    f"{OIP}ModelMetadata": inference_pb2.ModelMetadataRequest(name="topics"),
    f"{HEALTH}Check": WATCHED,
}


@pytest.mark.parametrize("path", DESCRIPTIONS)
async def test_descriptions_of_large_models(large, soon, send, path):
    data = DESCRIPTIONS[path].SerializeToString()
    code, details = await soon(lambda: send(large.app.address, path, [data]), path)
    assert code == grpc.StatusCode.OK, details


async def test_a_watch_of_health(large, soon, send):
    message = WATCHED.SerializeToString()
    code, _ = await soon(lambda: send(large.app.address, f"{HEALTH}Watch", [message], 0.3), "a watch")
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("field", ["list_services", "file_containing_symbol", "file_by_filename"])
async def test_reflections(large, soon, send, field):
    value = "tuneserve/v1/generation.proto" if field == "file_by_filename" else "tuneserve.v1.GenerationService"
    data = reflection_pb2.ServerReflectionRequest(**{field: value}).SerializeToString()
    path = f"{REFLECTION}ServerReflectionInfo"
    code, details = await soon(lambda: send(large.app.address, path, [data] * 100), field)
    assert code == grpc.StatusCode.OK, details


@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
@pytest.mark.parametrize("name", TENSORS)
async def test_small_tensors_that_make_large_ones(large, soon, send, name, raw):
    model, texts, *parameters = TENSORS[name]
    message = infer(model, texts, raw, **dict(*parameters)).SerializeToString()
    code, details = await soon(lambda: send(large.app.address, INFER, [message]))
    assert code == grpc.StatusCode.OK, details


async def test_an_answer_is_refused_before_it_is_written(large, soon, send):
    message = infer("ner", list(MANY_ENTITIES.texts)).SerializeToString()
    code, details = await soon(lambda: send(large.app.address, INFER, [message]))
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
async def test_many_calls_at_their_limits_hold_the_loop_no_longer_than_one(large, soon, name):
    """Each gave way after ten milliseconds, and forty of them made everybody wait for seconds."""
    service, method, request = LIMITS[name]
    if name == "labels":
        request = classification_pb2.ClassifyRequest(model="topics", inputs=[{"text": "good"}] * 1024)
    message = request.SerializeToString()
    codes = await soon(
        lambda: asyncio.to_thread(
            ask_at_once,
            large.app.address,
            f"/tuneserve.v1.{service}Service/{method}",
            message,
            20,
        )
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
