"""ClassifyStream, over the wire."""

import asyncio

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2

from tuneserve.server.api.classification import STREAM_AHEAD, ClassificationService, _alike
from tuneserve.server.call import context
from tuneserve.server.call.tenants import ANYBODY
from tuneserve.server.call.wire import Received
from tuneserve.server.metrics import Metrics
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import common_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub


def item(id_: int, text: str = "good", model: str = "topics", **fields) -> pb.ClassifyStreamRequest:
    request = pb.ClassifyRequest(model=model, inputs=[pb.ClassifyInput(text=text)], **fields)
    return pb.ClassifyStreamRequest(id=id_, request=request)


async def answers(served, items) -> dict[int, pb.ClassifyStreamResponse]:
    call = ClassificationServiceStub(served.channel).ClassifyStream(iter(items))
    found = [answer async for answer in call]
    assert await call.code() == grpc.StatusCode.OK
    assert len({answer.id for answer in found}) == len(found)
    return {answer.id: answer for answer in found}


async def test_every_item_is_answered_as_classify_would(served):
    texts = ["good", "good film", "bad , bad"] * 100
    served.engines["topics"].delay = 0.02
    found = await answers(served, [item(id_, text) for id_, text in enumerate(texts)])
    assert len(found) == 300
    # Some waited while answers were sent, and went to the engine together.
    assert len(served.engines["topics"].tickets) < len(served.engines["topics"].pooled) == 300
    for index, text in enumerate(texts[:3]):
        alone = await ClassificationServiceStub(served.channel).Classify(item(0, text).request)
        assert all(found[id_].response == alone for id_ in range(index, 300, 3))


async def test_answers_do_not_wait_for_slower_ones(served):
    served.engines["topics"].delay = 0.3
    call = ClassificationServiceStub(served.channel).ClassifyStream(
        iter([item(1), item(2, model="sentiment"), item(3, model="sentiment")])
    )
    assert [answer.id async for answer in call][-1] == 1


async def test_a_bad_item_fails_alone(served):
    found = await answers(
        served,
        [item(1), item(2, ""), item(3, model="nope"), item(4, model="ner"), pb.ClassifyStreamRequest(id=5), item(6)],
    )
    assert [found[id_].WhichOneof("outcome") for id_ in sorted(found)] == ["response", *["error"] * 4, "response"]
    codes = [code_pb2.INVALID_ARGUMENT, code_pb2.NOT_FOUND, code_pb2.FAILED_PRECONDITION, code_pb2.INVALID_ARGUMENT]
    assert [found[id_].error.code for id_ in (2, 3, 4, 5)] == codes
    violations = error_details_pb2.BadRequest()
    assert found[2].error.details[0].Unpack(violations)
    assert violations.field_violations[0].field == "inputs[0].text"


async def test_overload_is_the_items_own_and_counted(served):
    rejections = served.app.metrics.rejections.labels("sentiment", "queue_full")._value
    before = rejections.get()
    served.engines["sentiment"].delay = 0.2
    # Four calls may be in at a time.
    found = await answers(served, [item(id_, model="sentiment") for id_ in range(12)])
    errors = [answer.error for answer in found.values() if answer.HasField("error")]
    assert len(errors) == 8
    assert {error.code for error in errors} == {code_pb2.RESOURCE_EXHAUSTED}
    assert errors[0].details[0].Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    assert rejections.get() == before + 8


async def test_what_nobody_expected_is_told_by_a_fixed_text(served, caplog):
    served.engines["topics"].broken = RuntimeError("canary: secret words of the prompt")
    found = await answers(served, [item(1), item(2, model="sentiment")])
    assert found[1].error.code == code_pb2.INTERNAL
    assert found[1].error.message.startswith("internal error")
    assert "canary" not in str(found)
    assert found[2].HasField("response")
    assert "RuntimeError" in caplog.text
    assert "canary" not in caplog.text


async def test_only_so_many_are_taken_at_a_time(served):
    engine = served.engines["topics"]
    # For as long as it takes until as many came as may, on a busy machine too.
    engine.delay = 1.0
    items = [item(id_) for id_ in range(STREAM_AHEAD * 3)]
    [model] = [model for model in served.app.models if model.name == "topics"]
    asked = asyncio.create_task(answers(served, items))
    most = 0
    while not asked.done():
        most = max(most, model.admission.calls)
        if most >= STREAM_AHEAD:
            engine.delay = 0.01
        await asyncio.sleep(0.005)
    assert most == STREAM_AHEAD
    assert len(await asked) == STREAM_AHEAD * 3


@pytest.mark.parametrize("how", ["cancelled", "too late"])
async def test_a_stream_that_ends_ends_its_items(served, until, how):
    engine = served.engines["topics"]
    engine.delay = 30
    stub = ClassificationServiceStub(served.channel)
    call = stub.ClassifyStream(timeout=None if how == "cancelled" else 0.5)
    for id_ in range(4):
        await call.write(item(id_))
    await until(lambda: engine.running == 4)
    if how == "cancelled":
        call.cancel()
    await until(lambda: engine.running == 0)
    [model] = [model for model in served.app.models if model.name == "topics"]
    await until(lambda: model.admission.calls == 0)
    assert await call.code() == (grpc.StatusCode.CANCELLED if how == "cancelled" else grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_an_empty_stream_ends(served):
    assert await answers(served, []) == {}


@pytest.fixture
def call() -> context.Call:
    """The call of a stream, for what is not sent over the wire."""
    call = context.Call("id", "ClassifyStream", ANYBODY, {}, Metrics())
    context.begin(call)
    return call


async def together(served, items) -> dict[int, pb.ClassifyStreamResponse]:
    given = [Received(one, one.ByteSize()) for one in items]
    return {one.id: one async for one in ClassificationService(served.app.models)._answers(given)}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"top_k": 1},
        {"raw_scores": True},
        {"threshold": 0.6},
        {"truncation": common_pb2.TRUNCATION_END},
        {"top_k": 0},
    ],
)
async def test_requests_are_answered_together_as_alone(served, call, fields):
    texts = ["good", "good film", "bad , bad", "the film was good", "", "good " * 99, "bad"]
    items = [item(id_, text, **fields) for id_, text in enumerate(texts)]
    items[3].request.inputs[0].text_pair = "a film"
    alone = {id_: one for item_ in items for id_, one in (await together(served, [item_])).items()}
    read, counted = call.prompt_tokens, call.metrics.texts.labels("topics")._value.get()
    assert await together(served, items) == alone
    assert call.prompt_tokens == 2 * read
    assert call.metrics.texts.labels("topics")._value.get() == 2 * counted
    good = [one for one in items if alone[one.id].HasField("response")]
    before = len(served.engines["topics"].tickets)
    assert (await together(served, good)).keys() == {one.id for one in good}
    assert len(served.engines["topics"].tickets) == before + bool(good)


async def test_a_text_whose_scores_are_no_numbers_fails_alone(served, call, monkeypatch, caplog):
    engine = served.engines["topics"]
    pool = engine.pool

    async def overflowing(ticket, inputs, task):
        rows = await pool(ticket, inputs, task)
        return [row * np.float32("nan" if len(one.token_ids) > 4 else 1) for one, row in zip(inputs, rows, strict=True)]

    monkeypatch.setattr(engine, "pool", overflowing)
    found = await together(served, [item(1), item(2, "the film was good"), item(3, "bad")])
    assert found[2].error.code == code_pb2.INTERNAL
    assert [found[id_].response.results[0].token_count for id_ in (1, 3)] == [3, 3]
    assert caplog.text.count("ArithmeticError") == 1


@pytest.mark.parametrize(
    "other",
    [
        item(2, model="sentiment"),
        item(2, top_k=1),
        item(2, truncation=common_pb2.TRUNCATION_END),
        item(2, priority=1),
        item(2, thresholds={"a": 0.5}),
    ],
)
def test_requests_that_differ_in_more_than_their_text_are_not_alike(other):
    assert _alike(Received(item(1), 100)) == _alike(Received(item(2, "bad"), 100)) is not None
    assert _alike(Received(item(1), 100)) != _alike(Received(other, 100)) is not None


@pytest.mark.parametrize(
    ("one", "size"),
    [
        (item(1), 5000),
        (item(1, truncation=common_pb2.TRUNCATION_WINDOWS), 100),
        (item(1, explain={}), 100),
        (item(1, labels=["a", "b"]), 100),
        (pb.ClassifyStreamRequest(id=1), 100),
        (pb.ClassifyStreamRequest(request={"model": "topics", "inputs": [{"text": "a"}, {"text": "b"}]}), 100),
    ],
)
def test_some_requests_are_like_no_other(one, size):
    assert _alike(Received(one, size)) is None
