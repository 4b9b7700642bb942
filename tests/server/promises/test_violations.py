"""A refused request names everything that is wrong with its fields, not only the first."""

import grpc
import pytest
from google.protobuf import struct_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tuneserve.oip import inference_pb2
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import common_pb2, embedding_pb2, generation_pb2, model_admin_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

NO_NUMBER = struct_pb2.Struct(fields={"a": struct_pb2.Value(number_value=float("nan"))})
SAMPLING = generation_pb2.SamplingParams(
    max_tokens=0,
    temperature=-1,
    stop=["ok", "", "x" * 2000],
    bad_words=[" "],
    stop_token_ids=[1, -1],
    allowed_token_ids=[300],
    logit_bias={400: 1.0, 5: 101.0},
    structured_output=generation_pb2.StructuredOutput(choice=generation_pb2.Choice(options=["a", ""])),
)
OF_SAMPLING = [
    "sampling.max_tokens",
    "sampling.temperature",
    "sampling.stop[1]",
    "sampling.stop[2]",
    "sampling.bad_words[0]",
    "sampling.stop_token_ids[1]",
    "sampling.allowed_token_ids[0]",
    "sampling.logit_bias[400]",
    "sampling.logit_bias[5]",
    "sampling.structured_output.choice.options[1]",
]
CHAT = generation_pb2.Chat(
    messages=[generation_pb2.ChatMessage(content="hi"), generation_pb2.ChatMessage(role="user")],
    tools=[NO_NUMBER],
    tool_choice=generation_pb2.ToolChoice(mode=generation_pb2.TOOL_CHOICE_MODE_AUTO, name="look"),
    template_arguments=struct_pb2.Struct(fields={"messages": struct_pb2.Value(bool_value=True)}),
)
OF_CHAT = [
    "prompt.chat.messages[0].role",
    "prompt.chat.tools[0]",
    "prompt.chat.tool_choice.name",
    "prompt.chat.template_arguments",
]


def inputs(*texts: str | tuple[str, str]) -> list[pb.ClassifyInput]:
    pairs = [(one, None) if isinstance(one, str) else one for one in texts]
    return [pb.ClassifyInput(text=text, text_pair=second) for text, second in pairs]


def fields(error: grpc.aio.AioRpcError) -> list[str]:
    """The fields that a refused call names, sorted."""
    found = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[0].Unpack(found)
    assert all(one.description for one in found.field_violations)
    return sorted(one.field for one in found.field_violations)


CLASSIFY = pb.ClassifyRequest(
    model="sentiment",
    inputs=inputs(" ", ("a", "")),
    top_k=0,
    threshold=2,
    thresholds={"pos": -1, "joy": 0.5},
    offset_unit=9,
    truncation=9,
    windows=pb.Windows(overlap=-1),
    labels=["a"],
    instruction="",
    explain=pb.Explain(max_words=0),
)
OF_CLASSIFY = [
    "inputs[0].text",
    "inputs[1].text_pair",
    "inputs[1].text_pair",  # explanations are not for pairs
    "top_k",
    "threshold",
    "thresholds[pos]",
    "thresholds[joy]",
    "offset_unit",
    "truncation",
    "windows",
    "labels",
    "instruction",
    "explain.max_words",
]
CASES = [
    (ClassificationServiceStub, "Classify", CLASSIFY, OF_CLASSIFY),
    (
        ClassificationServiceStub,
        "Classify",
        pb.ClassifyRequest(
            model="sentiment",
            inputs=inputs(("a", "b"), ""),
            truncation=common_pb2.TRUNCATION_WINDOWS,
            windows=pb.Windows(overlap=99, pooling=9),
            explain=pb.Explain(),
        ),
        [
            *("inputs[0].text_pair", "inputs[0].text_pair", "inputs[1].text"),
            *("windows.overlap", "windows.pooling", "explain"),
        ],
    ),
    (
        ClassificationServiceStub,
        "Classify",
        pb.ClassifyRequest(
            model="chat",
            inputs=inputs("", ("a", "b")),
            labels=["a", " ", "b ", "a"],
            examples=[pb.ClassifyExample(text="", label="c")],
            instruction=" ",
            truncation=common_pb2.TRUNCATION_WINDOWS,
            windows=pb.Windows(),
            thresholds={"c": 0.5},
            top_k=-1,
        ),
        [
            *("inputs[0].text", "inputs[1].text_pair", "labels[1]", "labels[2]", "labels[3]", "examples[0].text"),
            *("examples[0].label", "instruction", "truncation", "windows", "thresholds[c]", "top_k"),
        ],
    ),
    # Too many inputs are not looked at; the other fields are.
    (
        ClassificationServiceStub,
        "Classify",
        pb.ClassifyRequest(model="sentiment", inputs=inputs(*[""] * 9), top_k=0),
        ["inputs", "top_k"],
    ),
    # Other fields are checked against the labels: with too many of them, they are not.
    (
        ClassificationServiceStub,
        "Classify",
        pb.ClassifyRequest(model="chat", inputs=inputs(" "), labels=["a"] * 257, thresholds={"b": 2}),
        ["inputs[0].text", "labels"],
    ),
    (
        ClassificationServiceStub,
        "ClassifyTokens",
        pb.ClassifyTokensRequest(
            model="ner", texts=["a", "", " "], aggregation=9, offset_unit=9, truncation=9, windows=pb.Windows()
        ),
        ["texts[1]", "texts[2]", "aggregation", "offset_unit", "truncation", "windows"],
    ),
    (
        ClassificationServiceStub,
        "Rank",
        pb.RankRequest(model="sentiment", query=" ", candidates=["", "a"], label="joy", top_k=0, truncation=3),
        ["query", "candidates[0]", "label", "top_k", "truncation"],
    ),
    (
        EmbeddingServiceStub,
        "Embed",
        embedding_pb2.EmbedRequest(model="vectors", texts=["", "a"], truncation=9, dimensions=0),
        ["texts[0]", "truncation", "dimensions"],
    ),
    (
        GenerationServiceStub,
        "Generate",
        generation_pb2.GenerateRequest(model="chat", prompt=generation_pb2.Prompt(chat=CHAT), sampling=SAMPLING),
        OF_SAMPLING + OF_CHAT,
    ),
    (
        GenerationServiceStub,
        "Generate",
        generation_pb2.GenerateRequest(
            model="chat",
            prompt=generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[1, 300, -1])),
            sampling=generation_pb2.SamplingParams(n=0),
        ),
        ["prompt.token_ids.ids[1]", "prompt.token_ids.ids[2]", "sampling.n"],
    ),
    (
        GenerationServiceStub,
        "Tokenize",
        generation_pb2.TokenizeRequest(model="chat", prompt=generation_pb2.Prompt(chat=CHAT), offset_unit=9),
        ["offset_unit", *OF_CHAT],
    ),
    (
        ModelServiceStub,
        "ListModels",
        model_pb2.ListModelsRequest(page_size=-1, page_token="?"),
        ["page_size", "page_token"],
    ),
    (
        ModelAdminServiceStub,
        "SetAlias",
        model_admin_pb2.SetAliasRequest(
            alias=model_pb2.Alias(
                name="bad name",
                targets=[
                    model_pb2.AliasTarget(model="no-version"),
                    model_pb2.AliasTarget(model="a@1", weight=1),
                    model_pb2.AliasTarget(model="a@1", weight=-1),
                ],
                shadow="a@1",
            )
        ),
        [
            *("alias.name", "alias.targets[0].model", "alias.targets[0].weight", "alias.targets[2].model"),
            *("alias.targets[2].weight", "alias.shadow"),
        ],
    ),
]


@pytest.mark.parametrize(("stub", "method", "request_", "expected"), CASES)
async def test_a_call_names_all_of_them(served, refused, stub, method, request_, expected):
    channel = served.admin if stub is ModelAdminServiceStub else served.channel
    call = getattr(stub(channel), method)(request_)
    assert fields(await refused(call, grpc.StatusCode.INVALID_ARGUMENT)) == sorted(expected)
    assert not any(engine.tickets for engine in served.engines.values())


async def test_so_does_a_stream_of_texts(served, refused):
    sampling = generation_pb2.SamplingParams(prompt_logprobs=1)
    sampling.MergeFrom(SAMPLING)
    request = generation_pb2.GenerateRequest(model="chat", sampling=sampling)
    stream = GenerationServiceStub(served.channel).GenerateStream(request)
    found = fields(await refused(stream.read(), grpc.StatusCode.INVALID_ARGUMENT))
    assert found == sorted(["prompt", "sampling.prompt_logprobs", *OF_SAMPLING])


async def test_so_does_each_request_of_a_stream(served):
    requests = [
        pb.ClassifyStreamRequest(id=1, request=pb.ClassifyRequest(model="sentiment", inputs=inputs("good"))),
        pb.ClassifyStreamRequest(id=2, request=CLASSIFY),
    ]
    call = ClassificationServiceStub(served.channel).ClassifyStream(iter(requests))
    answers = {answer.id: answer async for answer in call}
    assert answers[1].HasField("response")
    found = error_details_pb2.BadRequest()
    assert answers[2].error.details[0].Unpack(found)
    assert sorted(one.field for one in found.field_violations) == sorted(OF_CLASSIFY)


async def test_so_does_the_open_inference_protocol_by_its_own_names(served, refused):
    request = inference_pb2.ModelInferRequest(model_name="chat")
    texts = request.inputs.add(name="text_input", datatype="BYTES", shape=[2])
    texts.contents.bytes_contents.extend([b"the film", b""])
    request.parameters["temperature"].double_param = -1
    request.parameters["max_tokens"].int64_param = 0
    call = GRPCInferenceServiceStub(served.channel).ModelInfer(request)
    found = fields(await refused(call, grpc.StatusCode.INVALID_ARGUMENT))
    assert found == ["inputs[0] (text_input)[1]", "parameters.max_tokens", "parameters.temperature"]


async def test_so_do_texts_once_they_are_tokenized(served, refused):
    long = "good " * 40
    request = pb.ClassifyRequest(model="sentiment", inputs=inputs(long, "good", long))
    call = ClassificationServiceStub(served.channel).Classify(request)
    found = fields(await refused(call, grpc.StatusCode.INVALID_ARGUMENT))
    assert found == ["inputs[0].text", "inputs[2].text"]


async def test_of_a_great_many_some_are_named_and_the_others_counted(served, refused):
    sampling = generation_pb2.SamplingParams(allowed_token_ids=[300] * 1000, n=0)
    prompt = generation_pb2.Prompt(text="the film")
    request = generation_pb2.GenerateRequest(model="chat", prompt=prompt, sampling=sampling)
    error = await refused(GenerationServiceStub(served.channel).Generate(request), grpc.StatusCode.INVALID_ARGUMENT)
    found = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[0].Unpack(found)
    *shown, rest = found.field_violations
    assert [one.field for one in shown] == [
        "sampling.n",
        *(f"sampling.allowed_token_ids[{index}]" for index in range(31)),
    ]
    assert all(one.description == "is 300; allowed: 0 to 299" for one in shown[1:])
    assert (rest.field, rest.description) == ("request", "has 969 more violations")
