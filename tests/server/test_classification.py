import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub


def request(*texts: str, model: str = "sentiment", **fields) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=model, inputs=[pb.ClassifyInput(text=text) for text in texts], **fields)


async def test_one_result_per_input_in_order(served):
    # The fake answers by the number of tokens: 3 and 4 with the special ones.
    response = await ClassificationServiceStub(served.channel).Classify(request("good", "good film", "bad"))
    assert [result.labels[0].label for result in response.results] == ["pos", "neg", "pos"]
    assert [result.token_count for result in response.results] == [3, 4, 3]
    assert response.usage.prompt_tokens == 10


async def test_single_label_scores_are_a_softmax_sorted(served):
    response = await ClassificationServiceStub(served.channel).Classify(request("good"))
    scores = [label.score for label in response.results[0].labels]
    expected = np.exp([2, 0]) / np.exp([2, 0]).sum()
    assert scores == pytest.approx(expected)


async def test_multi_label_scores_are_sigmoids(served):
    response = await ClassificationServiceStub(served.channel).Classify(request("good", model="topics"))
    scores = {label.label: label.score for label in response.results[0].labels}
    assert scores == pytest.approx({"a": 1 / (1 + np.exp(-2)), "b": 0.5, "c": 0.5})


async def test_raw_scores_are_logits(served):
    response = await ClassificationServiceStub(served.channel).Classify(request("good", raw_scores=True))
    assert [label.score for label in response.results[0].labels] == [2, 0]


async def test_top_k(served):
    response = await ClassificationServiceStub(served.channel).Classify(request("good", model="topics", top_k=1))
    assert [label.label for label in response.results[0].labels] == ["a"]


async def test_pairs_reach_the_engine_with_their_boundary(served):
    pair = pb.ClassifyInput(text="good film", text_pair="bad movie")
    await ClassificationServiceStub(served.channel).Classify(pb.ClassifyRequest(model="sentiment", inputs=[pair]))
    [encoded] = served.engines["sentiment"].pooled
    # [CLS] good film [SEP] bad movie [SEP]
    assert len(encoded.token_ids) == 7
    assert encoded.pair_start == 4


async def test_padding_and_truncation_of_the_tokenizer_file_are_ignored(served):
    await ClassificationServiceStub(served.channel).Classify(request("good film was bad , bad movie !"))
    [encoded] = served.engines["sentiment"].pooled
    assert len(encoded.token_ids) == 10


async def test_too_long_is_refused_or_cut(served, refused):
    stub = ClassificationServiceStub(served.channel)
    long = "good " * 40
    error = await refused(stub.Classify(request("good", long)), grpc.StatusCode.INVALID_ARGUMENT)
    assert "inputs[1].text: has 42 tokens, the model takes 32" in error.details()
    response = await stub.Classify(request("good", long, truncation=pb.TRUNCATION_END))
    assert [(result.token_count, result.truncated) for result in response.results] == [(3, False), (32, True)]
    assert served.engines["sentiment"].pooled[-1].token_ids[-1] == 3, "the cut keeps the closing [SEP]"


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (request(), "inputs"),
        (request(*["good"] * 9), "inputs"),
        (request("good", ""), "inputs[1].text"),
        (request(" \t\n"), "inputs[0].text"),
        (
            pb.ClassifyRequest(model="sentiment", inputs=[pb.ClassifyInput(text="a", text_pair="")]),
            "inputs[0].text_pair",
        ),
        (request("good", top_k=0), "top_k"),
        (request("good", truncation=17), "truncation"),
    ],
)
async def test_bad_fields_are_named(served, refused, bad, field):
    error = await refused(ClassificationServiceStub(served.channel).Classify(bad), grpc.StatusCode.INVALID_ARGUMENT)
    detail = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[0].Unpack(detail)
    assert detail.field_violations[0].field == field
    assert served.engines["sentiment"].pooled == []


async def test_unknown_model_lists_what_exists(served, refused):
    error = await refused(
        ClassificationServiceStub(served.channel).Classify(request("good", model="nope")), grpc.StatusCode.NOT_FOUND
    )
    assert "chat, ner, sentiment, topics" in error.details()


async def test_wrong_task_says_what_the_model_does(served, refused):
    error = await refused(
        ClassificationServiceStub(served.channel).Classify(request("good", model="chat")),
        grpc.StatusCode.UNIMPLEMENTED,
    )
    assert "Generate" in error.details()


@pytest.mark.parametrize(
    ("unit", "encode"),
    [
        (pb.OFFSET_UNIT_CODE_POINT, lambda text: text),
        (pb.OFFSET_UNIT_UTF8_BYTE, lambda text: text.encode()),
        (pb.OFFSET_UNIT_UTF16, lambda text: text.encode("utf-16-le")),
    ],
)
@pytest.mark.parametrize(
    "text", ["Angela Merkel in Hamburg", "🙂 née Merkel 🙂, 東京 !", "u\u0308 Hamburg \U0001f469\u200d\U0001f52c Tokyo"]
)
async def test_spans_slice_the_callers_own_string(served, unit, encode, text):
    response = await ClassificationServiceStub(served.channel).ClassifyTokens(
        pb.ClassifyTokensRequest(model="ner", texts=[text], offset_unit=unit)
    )
    spans = response.results[0].spans
    assert spans
    width = 2 if unit == pb.OFFSET_UNIT_UTF16 else 1
    for span in spans:
        assert encode(text)[span.start * width : span.end * width] == encode(span.text)
    assert "Hamburg" in text or any("東" in span.text or "京" in span.text or "Merkel" in span.text for span in spans)


async def test_token_classification_refuses_unknown_enums(served, refused):
    stub = ClassificationServiceStub(served.channel)
    for field in ("aggregation", "offset_unit", "truncation"):
        bad = pb.ClassifyTokensRequest(model="ner", texts=["Hamburg"], **{field: 99})
        error = await refused(stub.ClassifyTokens(bad), grpc.StatusCode.INVALID_ARGUMENT)
        assert field in error.details()
