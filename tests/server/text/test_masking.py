"""All that a caller sends to a model that masks is masked or refused, once a text, and the work ends with the call."""

import asyncio
import json
import time

import grpc
import pytest
from google.protobuf import json_format, struct_pb2
from google.protobuf.descriptor import FieldDescriptor

from tuneserve.oip import inference_pb2 as oip
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tuneserve.server.config import ModelConfig
from tuneserve.server.text import masking
from tuneserve.server.text.redaction import Redactor
from tuneserve.v1 import classification_pb2, embedding_pb2, feedback_pb2, monitor_pb2
from tuneserve.v1 import generation_pb2 as pb
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import loopback

# Writes out all that it is given.
TEMPLATE = "{{ messages }}{{ tools }}{{ documents }}{{ more }}"
MAIL = "jane.doe@example.com"
NER = ["O", "B-PER"]


@pytest.fixture(scope="module")
async def server(serve_config, make_bert, make_llama):
    masked = {"redact": ("email", "card")}
    long = {"max_position_embeddings": 1 << 20}
    models = {
        "sentiment": ModelConfig(path=make_bert(**long), **masked),
        "ner": ModelConfig(path=make_bert("ForTokenClassification", NER, **long), **masked),
        "vectors": ModelConfig(path=make_bert("Model", [], **long), **masked),
        "chat": ModelConfig(path=make_llama(TEMPLATE), **masked),
        "plain": ModelConfig(path=make_llama(TEMPLATE)),
    }
    async with serve_config(loopback(models)) as served:
        yield served


def texts_of(descriptor, seen=()) -> list[str]:
    """The names of all text fields that a request may have."""
    names = []
    for field in descriptor.fields:
        if field.message_type and field.message_type not in seen:
            names += texts_of(field.message_type, (*seen, descriptor))
        elif field.type == FieldDescriptor.TYPE_STRING:
            names.append(field.full_name.removeprefix("tuneserve.v1."))
    return names


REQUESTS = [
    *(classification_pb2.ClassifyRequest, classification_pb2.ClassifyTokensRequest, classification_pb2.RankRequest),
    *(embedding_pb2.EmbedRequest, pb.GenerateRequest, pb.TokenizeRequest, monitor_pb2.ObserveStreamRequest),
    feedback_pb2.FeedbackRequest,
]


def test_the_names_that_are_not_masked_are_fields_that_there_are():
    known = {name for kind in REQUESTS for name in texts_of(kind.DESCRIPTOR)}
    assert known >= masking._REFUSED
    assert masking._NAMES - {"ClassifyRequest.thresholds"} <= known
    # What is masked, for whoever adds a field to look at.
    assert {name for name in known - masking._REFUSED - masking._NAMES if not name.startswith("google.")} == {
        *("ClassifyRequest.instruction", "ClassifyInput.text", "ClassifyInput.text_pair", "ClassifyExample.text"),
        *("ClassifyTokensRequest.texts", "RankRequest.query", "RankRequest.candidates", "EmbedRequest.texts"),
        *("Prompt.text", "ChatMessage.role", "ChatMessage.content", "ChatMessage.name", "ChatMessage.tool_call_id"),
        *("ToolChoice.name", "ClassifyRequest.ThresholdsEntry.key", "ObserveStreamRequest.text"),
        *("LabelFeedback.text", "LabelFeedback.text_pair", "AnswerFeedback.answer", "AnswerFeedback.correction"),
        *("ClickFeedback.query", "ClickFeedback.chosen", "ClickFeedback.ignored"),
    }


def struct(value: dict) -> struct_pb2.Struct:
    return json_format.ParseDict(value, struct_pb2.Struct())


async def test_a_conversation_is_masked_wherever_it_has_text(server):
    full_width = "ｊａｎｅ．ｄｏｅ＠ｅｘａｍｐｌｅ．ｃｏｍ"
    chat = pb.Chat(
        messages=[
            pb.ChatMessage(
                role="user", content=MAIL, name=MAIL, tool_call_id=MAIL, tool_calls=[struct({MAIL: [MAIL]})]
            ),
            pb.ChatMessage(role=MAIL, content=full_width),
        ],
        tools=[struct({MAIL: {"deep": [{MAIL: {MAIL: MAIL}}]}})],
        documents=[struct({MAIL: "a"}), struct({"a": full_width})],
        template_arguments=struct({"more": {MAIL: MAIL}}),
    )
    stub = GenerationServiceStub(server.channel)
    shown = await stub.Tokenize(pb.TokenizeRequest(model="plain", prompt=pb.Prompt(chat=chat)))
    count = shown.text.count(MAIL) + shown.text.count(full_width)
    assert count == 15
    masked = await stub.Tokenize(pb.TokenizeRequest(model="chat", prompt=pb.Prompt(chat=chat)))
    assert MAIL not in masked.text
    assert full_width not in masked.text
    assert masked.text.count("[EMAIL]") == count


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"stop": ["a", MAIL]}, "stop[1]"),
        ({"bad_words": [f"to {MAIL}"]}, "bad_words[0]"),
        ({"structured_output": {"choice": {"options": ["a", MAIL]}}}, "structured_output.choice.options[1]"),
        ({"structured_output": {"regex": MAIL.replace(".", r"\.")}}, "structured_output.regex"),
        ({"structured_output": {"grammar": f'root ::= "{MAIL}"'}}, "structured_output.grammar"),
        ({"structured_output": {"json_schema": json.dumps({"const": MAIL})}}, "structured_output.json_schema"),
        (
            {"structured_output": {"json_schema": '{"const": "jane.doe\\u0040example.com"}'}},
            "structured_output.json_schema",
        ),
    ],
)
async def test_what_must_or_must_not_be_written_is_refused(server, refused, sampling, field):
    params = json_format.ParseDict(sampling, pb.SamplingParams())
    request = pb.GenerateRequest(model="chat", prompt=pb.Prompt(text="a"), sampling=params)
    error = await refused(GenerationServiceStub(server.channel).Generate(request), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith(f"sampling.{field}: contains personal data")
    assert MAIL not in error.details()


async def test_all_that_is_refused_is_named(server, refused):
    params = pb.SamplingParams(stop=[MAIL, "a", f"to {MAIL}"], bad_words=[MAIL])
    request = pb.GenerateRequest(model="chat", prompt=pb.Prompt(text="a"), sampling=params)
    error = await refused(GenerationServiceStub(server.channel).Generate(request), grpc.StatusCode.INVALID_ARGUMENT)
    assert [one.split(":")[0] for one in error.details().split("; ") if "contains" in one] == [
        *("sampling.stop[0]", "sampling.stop[2]", "sampling.bad_words[0]")
    ]


async def test_labels_are_refused_and_examples_masked(server, refused):
    stub = ClassificationServiceStub(server.channel)
    request = classification_pb2.ClassifyRequest(
        model="chat",
        inputs=[classification_pb2.ClassifyInput(text="a")],
        labels=["good", MAIL],
        instruction=f"Ask {MAIL}.",
    )
    error = await refused(stub.Classify(request), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("labels[1]: contains personal data")
    request.labels[1] = "bad"
    request.examples.add(text=MAIL, label="bad")
    seen = await masking.redacted(Redactor(["email"]), request, "", asyncio.to_thread)
    assert seen.request.instruction == "Ask [EMAIL]."
    assert seen.request.examples[0].text == "[EMAIL]"


LONG = "a" * 20_001
TOO_LONG = [
    ("Classify", {"model": "sentiment", "inputs": [{"text": "a"}, {"text": LONG}]}, "inputs[1].text"),
    ("Classify", {"model": "sentiment", "inputs": [{"text": "a", "text_pair": LONG}]}, "inputs[0].text_pair"),
    ("ClassifyTokens", {"model": "ner", "texts": ["a", "b", LONG]}, "texts[2]"),
    ("Rank", {"model": "sentiment", "query": LONG, "candidates": ["a"], "label": "pos"}, "query"),
    ("Rank", {"model": "sentiment", "query": "a", "candidates": ["a", LONG], "label": "pos"}, "candidates[1]"),
    ("Embed", {"model": "vectors", "texts": [LONG]}, "texts[0]"),
    ("Generate", {"model": "chat", "prompt": {"text": LONG}}, "prompt.text"),
    (
        "Generate",
        {"model": "chat", "prompt": {"chat": {"messages": [{"role": "user", "content": LONG}]}}},
        "prompt.chat.messages[0].content",
    ),
    (
        "Generate",
        {
            "model": "chat",
            "prompt": {"chat": {"messages": [{"role": "user"}], "tools": [{}, {"a": [LONG]}]}},
        },
        "prompt.chat.tools[1]",
    ),
]


@pytest.mark.parametrize(("method", "content", "field"), TOO_LONG)
async def test_a_text_that_is_too_long_is_named(server, refused, method, content, field):
    stubs = ClassificationServiceStub, EmbeddingServiceStub, GenerationServiceStub
    [call] = [getattr(stub(server.channel), method) for stub in stubs if hasattr(stub(server.channel), method)]
    kind = next(kind for kind in REQUESTS if kind.__name__ == f"{method}Request")
    error = await refused(call(json_format.ParseDict(content, kind())), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith(f"{field}: has 20001 characters")


async def test_it_is_named_as_the_caller_of_another_protocol_knows_it(server, refused):
    content = oip.InferTensorContents(bytes_contents=[b"a", LONG.encode()])
    tensor = oip.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[2], contents=content)
    call = GRPCInferenceServiceStub(server.channel).ModelInfer(oip.ModelInferRequest(model_name="ner", inputs=[tensor]))
    error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("inputs[0]")
    assert "[1]: has 20001 characters" in error.details()


async def test_two_keys_that_look_alike_are_refused(server, refused):
    chat = pb.Chat(messages=[pb.ChatMessage(role="user")], tools=[struct({"a@b.org": 1, "c@d.org": 2})])
    request = pb.TokenizeRequest(model="chat", prompt=pb.Prompt(chat=chat))
    error = await refused(GenerationServiceStub(server.channel).Tokenize(request), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("prompt.chat.tools[0]: holds two keys")


async def test_places_are_the_callers(server):
    text = "née ４１１１ 1111\u200b 1111 1111 was angela"
    response = await ClassificationServiceStub(server.channel).ClassifyTokens(
        classification_pb2.ClassifyTokensRequest(model="ner", texts=[text])
    )
    assert response.results[0].spans
    for span in response.results[0].spans:
        assert span.text == text[span.start : span.end]
        # Whole, or not at all.
        assert ("1" in span.text) == ("４１１１ 1111\u200b 1111 1111" in span.text)
    tokens = await GenerationServiceStub(server.channel).Tokenize(
        pb.TokenizeRequest(model="chat", prompt=pb.Prompt(text=f"to {MAIL}."))
    )
    assert tokens.text == f"to {MAIL}."
    assert {tokens.text[one.start : one.end] for one in tokens.tokens} >= {MAIL, "."}


@pytest.fixture
def counted(monkeypatch):
    """How often each text was masked."""
    seen: list[str] = []
    mask = Redactor.mask

    def count(self, text):
        seen.append(text)
        return mask(self, text)

    monkeypatch.setattr(Redactor, "mask", count)
    return seen


async def test_a_text_is_masked_once_a_call(server, counted):
    texts = ["the film was good", f"{MAIL} was bad"]
    request = classification_pb2.ClassifyRequest(
        model="sentiment",
        inputs=[classification_pb2.ClassifyInput(text=text) for text in [*texts, texts[0]]],
        explain=classification_pb2.Explain(),
    )
    response = await ClassificationServiceStub(server.channel).Classify(request)
    assert [one.text for one in response.results[1].weights] == [MAIL, "was", "bad"]
    assert sorted(counted) == sorted(texts)


async def test_masking_ends_with_its_call(server, counted, until):
    """Of many texts that take a while, none is begun any more once the call is given up."""
    texts = [f"{number} " + "(0301) 90 18-20/44 " * 800 for number in range(120)]
    call = EmbeddingServiceStub(server.channel).Embed(embedding_pb2.EmbedRequest(model="vectors", texts=texts))
    waiting = asyncio.ensure_future(call.code())
    await until(lambda: len(counted) >= 2)
    # A neighbour's text goes between two of them.
    neighbour = embedding_pb2.EmbedRequest(model="vectors", texts=["good"])
    assert (await EmbeddingServiceStub(server.channel).Embed(neighbour, timeout=60)).results
    assert len(counted) < 60
    call.cancel()
    await waiting
    await asyncio.sleep(1)
    begun, used = len(counted), time.process_time()
    await asyncio.sleep(1)
    assert len(counted) == begun < 100
    assert time.process_time() - used < 0.9
