"""Poison: a bad request fails alone. The answers of its neighbours are, byte for byte, those of a run without it."""

import asyncio
import random

import grpc
import pytest
from tokenizers import Tokenizer

from tuneserve.server.engine.interface import RequestRefused
from tuneserve.v1 import classification_pb2, generation_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import loopback

TEXTS = ["the film was good", "angela merkel née in hamburg", "東京 !", "bad", "a movie , was awful . " * 2]
POISON = 13  # a token id that ends the request that brings it


@pytest.fixture
def poisoned(served):
    """Engines that refuse, or break, when they meet one token. Room for every call of these tests."""
    chat, sentiment = served.engines["chat"], served.engines["sentiment"]
    generate, pool = chat.generate, sentiment.pool

    async def bad_generate(ticket, token_ids, sampling, stream):
        async for output in generate(ticket, token_ids, sampling, stream):
            if POISON in token_ids:
                raise RequestRefused("temperature")
            yield output

    async def bad_pool(ticket, inputs, task):
        if any(len(one.token_ids) > 20 for one in inputs):
            raise RuntimeError("poison")
        return await pool(ticket, inputs, task)

    chat.generate, sentiment.pool = bad_generate, bad_pool
    yield served
    chat.generate, sentiment.pool = generate, pool


def classify(text: str) -> classification_pb2.ClassifyRequest:
    return classification_pb2.ClassifyRequest(
        model="sentiment",
        inputs=[classification_pb2.ClassifyInput(text=text), classification_pb2.ClassifyInput(text="a")],
    )


def generate(ids: list[int], stream: bool):
    """The method, and its request."""
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=ids))
    sampling = generation_pb2.SamplingParams(max_tokens=5, n=2, prompt_logprobs=None if stream else 0)
    request = generation_pb2.GenerateRequest(model="chat", prompt=prompt, sampling=sampling)
    return "GenerateStream" if stream else "Generate", request


async def outcome(call) -> bytes | str:
    """The bytes of an answer, or the code of a refusal."""
    try:
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            return (await call).SerializeToString(deterministic=True)
        # The completions of one stream come in any order.
        messages = sorted([one async for one in call], key=lambda one: one.completions[0].index)
        return b"".join(one.completions[0].SerializeToString(deterministic=True) for one in messages)
    except grpc.aio.AioRpcError as error:
        return error.code().name


async def run(served, requests: list) -> list[bytes | str]:
    """Sends all at once, four at a time so that no queue is full."""
    classification, generation = ClassificationServiceStub(served.channel), GenerationServiceStub(served.channel)
    room = asyncio.Semaphore(4)

    async def one(request) -> bytes | str:
        method = classification.Classify
        if isinstance(request, tuple):
            method, request = getattr(generation, request[0]), request[1]
        async with room:
            return await outcome(method(request))

    return list(await asyncio.gather(*(one(request) for request in requests)))


async def test_neighbours_of_bad_calls_answer_as_if_alone(poisoned):
    rng = random.Random(7)
    good = [classify(text) for text in TEXTS * 4]
    good += [generate([5, 6, number], stream) for number in range(20, 30) for stream in (False, True)]
    bad = [classify("good " * 25), classify(""), classify("good " * 90)] * 5
    bad += [generate([5, POISON], stream) for stream in (False, True)] * 5
    bad += [generate([5, 9999], stream) for stream in (False, True)] * 5
    clean = await run(poisoned, good)
    assert all(isinstance(one, bytes) and one for one in clean)
    mixed = [*enumerate(good), *((None, one) for one in bad)]
    rng.shuffle(mixed)
    answers = await run(poisoned, [request for _, request in mixed])
    for (number, _), answer in zip(mixed, answers, strict=True):
        if number is None:
            assert answer in ("INVALID_ARGUMENT", "INTERNAL")
        else:
            assert answer == clean[number]


async def test_neighbours_on_one_stream_answer_as_if_alone(poisoned):
    stub = ClassificationServiceStub(poisoned.channel)

    async def stream(texts: list[str]) -> dict[int, classification_pb2.ClassifyStreamResponse]:
        requests = [
            classification_pb2.ClassifyStreamRequest(id=number, request=classify(text))
            for number, text in enumerate(texts)
        ]
        return {one.id: one async for one in stub.ClassifyStream(iter(requests))}

    texts = [TEXTS[0], "", TEXTS[1], "good " * 25, TEXTS[3]]
    answers = await stream(texts)
    assert len(answers) == len(texts)
    for number, text in enumerate(texts):
        if text in TEXTS:
            alone = (await stream([text]))[0]
            assert answers[number].response.SerializeToString() == alone.response.SerializeToString() != b""
        else:
            assert answers[number].error.code in (grpc.StatusCode.INVALID_ARGUMENT.value[0], 13)


@pytest.fixture
async def overgrown(serve_config, make_llama):
    """A checkpoint whose tokenizer has a token, <extra>, past the model's vocabulary, as one with added tokens may."""
    directory = make_llama()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_tokens([*(f"<unused{index}>" for index in range(300 - tokenizer.get_vocab_size())), "<extra>"])
    assert tokenizer.token_to_id("<extra>") == 300
    tokenizer.save(str(directory / "tokenizer.json"))
    config = loopback({"chat": directory})
    async with serve_config(config) as served:
        yield served


@pytest.mark.parametrize("kind", ["text", "chat"])
@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_token_past_the_vocabulary_never_reaches_the_engine(overgrown, method, kind):
    """It has no embedding, and would take the engine down with everybody's calls."""
    text = "the <extra> film"
    chat = generation_pb2.Chat(messages=[generation_pb2.ChatMessage(role="user", content=text)])
    prompt = generation_pb2.Prompt(text=text) if kind == "text" else generation_pb2.Prompt(chat=chat)
    request = generation_pb2.GenerateRequest(model="chat", prompt=prompt)
    call = getattr(GenerationServiceStub(overgrown.channel), method)(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call if method == "Generate" else [one async for one in call]
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(f"prompt.{kind}: has a token that the model does not know")
    assert overgrown.engines["chat"].sampled[1:] == [], "the warm-up alone"


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_bad_word_past_the_vocabulary_never_reaches_the_engine(overgrown, method):
    """The engine would lower the score of a token that it has no score for: it writes past the end of its scores."""
    sampling = generation_pb2.SamplingParams(bad_words=["film", "the <extra> film"])
    request = generation_pb2.GenerateRequest(
        model="chat", prompt=generation_pb2.Prompt(text="the film"), sampling=sampling
    )
    call = getattr(GenerationServiceStub(overgrown.channel), method)(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call if method == "Generate" else [one async for one in call]
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("sampling.bad_words[1]: has a token that the model does not know")
    assert overgrown.engines["chat"].sampled[1:] == [], "the warm-up alone"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, ""),
        ({"inputs": [{"text": "the film"}, {"text": "the <extra> film"}]}, "inputs[1].text"),
        ({"inputs": [{"text": "the <extra> film " * 400}], "truncation": "TRUNCATION_END"}, "inputs[0].text"),
        ({"instruction": "the <extra> film ?"}, "inputs[0].text"),
        ({"labels": ["good", "<extra>"]}, "labels[1]"),
        ({"examples": [{"text": "<extra>", "label": "good"}]}, "inputs[0].text"),
    ],
)
async def test_labels_of_a_token_past_the_vocabulary_never_reach_the_engine(overgrown, fields, field):
    """Classification by a generation model makes prompts of the texts, and asks for the labels' tokens."""
    engine = overgrown.engines["chat"]
    engine.max_length = 512
    given = {"inputs": [{"text": "the film"}], "labels": ["good", "bad"], **fields}
    call = ClassificationServiceStub(overgrown.channel).Classify(
        classification_pb2.ClassifyRequest(model="chat", **given)
    )
    if not field:
        assert (await call).results
        return
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(f"{field}: has a token that the model does not know")
    assert engine.sampled[1:] == [], "the warm-up alone"
