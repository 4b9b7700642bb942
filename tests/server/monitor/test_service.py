"""MonitorService, over the wire."""

import asyncio
import re
import time

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2

from tuneserve.server.call import context
from tuneserve.server.call.errors import Overloaded
from tuneserve.server.call.tenants import Tenant, hashed
from tuneserve.server.call.wire import Received
from tuneserve.server.config import ModelConfig, MonitorConfig
from tuneserve.server.metrics import Metrics
from tuneserve.server.monitor.service import MonitorService, _alike
from tuneserve.v1 import classification_pb2
from tuneserve.v1 import monitor_pb2 as pb
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.monitor_pb2_grpc import MonitorServiceStub

from ..conftest import loopback

TENANTS = """
tenants:
  one: {{keys: ['{one}']}}
  two: {{keys: ['{two}']}}
  topics: {{keys: ['{topics}'], models: [topics]}}
  poor: {{keys: ['{poor}'], requests_per_second: 1, tokens_per_minute: 100000}}
"""
KEYS = {name: f"{name}-key" for name in ("one", "two", "topics", "poor")}


def item(id_: int, text: str = "good", monitor: str = "news", **fields) -> pb.ObserveStreamRequest:
    return pb.ObserveStreamRequest(id=id_, monitor=monitor, text=text, **fields)


async def answers(served, items, key: str = "") -> dict[int, pb.ObserveStreamResponse]:
    metadata = (("x-api-key", KEYS[key]),) if key else ()
    call = MonitorServiceStub(served.channel).ObserveStream(iter(items), metadata=metadata)
    found = [answer async for answer in call]
    assert await call.code() == grpc.StatusCode.OK
    assert len({answer.id for answer in found}) == len(found)
    return {answer.id: answer for answer in found}


def counted(served) -> dict[tuple[str, str], float]:
    found = samples(served.app.metrics.observed)
    return {(one.labels["topic"], one.labels["sentiment"]): one.value for one in found}


def samples(counter) -> list:
    [metric] = counter.collect()
    return [one for one in metric.samples if one.name.endswith("_total")]


def says(engine, monkeypatch, *logits: float) -> None:
    """Makes a model say the same of every text."""

    async def pool(ticket, inputs, task):
        return [np.array(logits, np.float32) for _ in inputs]

    monkeypatch.setattr(engine, "pool", pool)


@pytest.fixture
async def server(serve_config, make_bert, make_llama, tmp_path):
    """With keys, examples, and a model of each kind that masks personal data."""
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(TENANTS.format(**{name: hashed(key) for name, key in KEYS.items()}))
    models = {
        "topics": ModelConfig(
            path=make_bert(labels=["a", "b"], problem_type="multi_label_classification"), redact=("email",)
        ),
        "sentiment": ModelConfig(path=make_bert(labels=["neg", "pos"]), redact=("ip",)),
    }
    monitors = {"news": MonitorConfig(topic="topics", sentiment="sentiment", examples=2)}
    async with serve_config(loopback(models, monitors=monitors, tenants=tenants)) as served:
        yield served


async def test_each_text_is_labelled_as_classify_would_and_counted(own_server):
    texts = ["good", "good film", "bad , bad"] * 10
    before = counted(own_server)
    found = await answers(own_server, [item(id_, text) for id_, text in enumerate(texts)])
    wanted = dict(before)
    classify = ClassificationServiceStub(own_server.channel).Classify
    for text, answer in zip(texts, (found[id_].observation for id_ in range(len(texts))), strict=True):
        inputs = [classification_pb2.ClassifyInput(text=text)]
        topics = await classify(classification_pb2.ClassifyRequest(model="topics", inputs=inputs, threshold=0.5))
        tone = await classify(classification_pb2.ClassifyRequest(model="sentiment", inputs=inputs, top_k=1))
        assert answer.topics == topics.results[0].labels
        assert [answer.sentiment] == list(tone.results[0].labels)
        assert answer.usage.prompt_tokens == topics.usage.prompt_tokens + tone.usage.prompt_tokens
        versions = answer.topic_model_version, answer.sentiment_model_version
        assert versions == (topics.model_version, tone.model_version)
        for topic in answer.topics:
            wanted[topic.label, answer.sentiment.label] += 1
    assert counted(own_server) == wanted != before


async def test_a_text_may_have_several_topics_or_none(own_server, monkeypatch):
    before = counted(own_server)
    says(own_server.engines["sentiment"], monkeypatch, -1, 1)
    says(own_server.engines["topics"], monkeypatch, -1, 3, 2)
    [answer] = (await answers(own_server, [item(1)])).values()
    assert [topic.label for topic in answer.observation.topics] == ["b", "c"]
    says(own_server.engines["topics"], monkeypatch, -1, -2, -3)
    [answer] = (await answers(own_server, [item(1)])).values()
    assert answer.HasField("observation")
    assert not answer.observation.topics
    changed = {cell: now - before[cell] for cell, now in counted(own_server).items() if now != before[cell]}
    assert changed == {("b", "pos"): 1, ("c", "pos"): 1}


async def observed(service: MonitorService, *items: pb.ObserveStreamRequest) -> dict[int, pb.ObserveStreamResponse]:
    """Observes texts together."""
    given = [Received(one, one.ByteSize()) for one in items]
    return {one.id: one async for one in service._answers(given)}


async def test_texts_are_observed_together_as_alone(server):
    call = context.Call("id", "ObserveStream", Tenant("one"), {}, Metrics())
    context.begin(call)
    service = MonitorService(server.app.models, server.app._monitors)
    texts = ["good", " ", "bad film of jane.doe@example.com", "good " * 99, "bad , bad"]
    items = [item(id_, text) for id_, text in enumerate(texts)]
    alone = {id_: one for item_ in items for id_, one in (await observed(service, item_)).items()}
    cells, read = counted(server), call.prompt_tokens
    assert await observed(service, *items) == alone
    assert [one.WhichOneof("outcome") for one in alone.values()].count("error") == 2
    assert counted(server) == {cell: 2 * count for cell, count in cells.items()}
    assert call.prompt_tokens == 2 * read
    engine = server.engines["topics"]
    before = len(engine.tickets)
    together = await observed(service, items[0], items[2], items[4])
    assert together == {id_: alone[id_] for id_ in together}
    assert len(engine.tickets) == before + 1
    kept = service._examples._kept["one"]
    assert {example.text for cell in kept.values() for example in cell} <= {"good", "bad film of [EMAIL]", "bad , bad"}


async def test_texts_that_are_tried_again_are_counted_once(server, monkeypatch):
    call = context.Call("id", "ObserveStream", Tenant("one"), {}, Metrics())
    context.begin(call)
    says(server.engines["topics"], monkeypatch, -1, 1)

    async def full(ticket, inputs, task):
        # Once the other model has answered.
        await asyncio.sleep(0.1)
        if len(inputs) > 1:
            raise Overloaded("no room for all", "QUEUE_TOKENS", 100)
        return [np.array([1, -1], np.float32)]

    monkeypatch.setattr(server.engines["sentiment"], "pool", full)
    service = MonitorService(server.app.models, server.app._monitors)
    found = await observed(service, *(item(id_) for id_ in range(4)))
    assert all(one.HasField("observation") for one in found.values())
    assert counted(server) == {("a", "neg"): 0, ("a", "pos"): 0, ("b", "neg"): 4, ("b", "pos"): 0}
    predictions = {(one.labels["model"], one.labels["label"]): one.value for one in samples(call.metrics.predictions)}
    assert predictions == {("topics", "b"): 4, ("sentiment", "neg"): 4}
    assert {one.labels["model"]: one.value for one in samples(call.metrics.texts)} == {"topics": 4, "sentiment": 4}


async def test_a_text_without_an_answer_is_no_prediction(server):
    call = context.Call("id", "ObserveStream", Tenant("one"), {}, Metrics())
    context.begin(call)

    async def broken(ticket, inputs, task):
        await asyncio.sleep(0.1)
        raise RuntimeError

    server.engines["sentiment"].pool = broken
    [answer] = (await observed(MonitorService(server.app.models, server.app._monitors), item(1))).values()
    assert answer.error.code == code_pb2.INTERNAL
    assert samples(call.metrics.predictions) == []


def test_what_differs_in_more_than_its_text_is_not_alike():
    assert _alike(Received(item(1), 100)) == _alike(Received(item(2, "bad"), 100)) is not None
    for other in (item(1, monitor="other"), item(1, truncation=2), item(1, priority=1)):
        assert _alike(Received(item(1), 100)) != _alike(Received(other, 100)) is not None
    assert _alike(Received(item(1), 5000)) is None


async def test_both_models_work_at_once(served, until):
    for name in ("topics", "sentiment"):
        served.engines[name].delay = 30
    call = MonitorServiceStub(served.channel).ObserveStream()
    await call.write(item(1))
    await until(lambda: served.engines["topics"].running == served.engines["sentiment"].running == 1)
    call.cancel()
    await until(lambda: served.engines["topics"].running == served.engines["sentiment"].running == 0)


async def test_a_bad_text_fails_alone_and_is_not_counted(own_server):
    before = counted(own_server)
    bad = [item(2, " "), item(3, monitor="nope"), item(4, "good " * 99), item(5, truncation=3, text="")]
    found = await answers(own_server, [item(1), *bad, item(6, "good " * 99, truncation=2)])
    assert [found[id_].WhichOneof("outcome") for id_ in sorted(found)] == ["observation", *["error"] * 4, "observation"]
    codes = [code_pb2.INVALID_ARGUMENT, code_pb2.NOT_FOUND, code_pb2.INVALID_ARGUMENT, code_pb2.INVALID_ARGUMENT]
    assert [found[id_].error.code for id_ in (2, 3, 4, 5)] == codes
    assert "served: news" in found[3].error.message
    fields = []
    for id_ in (2, 4, 5):
        violations = error_details_pb2.BadRequest()
        assert found[id_].error.details[0].Unpack(violations)
        fields.append([one.field for one in violations.field_violations])
    assert fields == [["text"], ["text"], ["text", "truncation"]]
    assert found[6].observation.truncated
    assert not found[1].observation.truncated
    # Each of the two good texts, once for each of its topics.
    topics = sum(len(found[id_].observation.topics) for id_ in (1, 6))
    assert sum(counted(own_server).values()) == sum(before.values()) + topics


async def test_a_text_that_one_model_cannot_answer_is_not_counted(own_server, caplog):
    before = counted(own_server)
    own_server.engines["topics"].broken = RuntimeError("canary: words of the text")
    [answer] = (await answers(own_server, [item(1)])).values()
    assert answer.error.code == code_pb2.INTERNAL
    assert "canary" not in str(answer) + caplog.text
    assert counted(own_server) == before


async def test_a_text_is_one_request_and_its_tokens_count_for_both_models(server):
    found = await answers(server, [item(id_) for id_ in range(3)], "poor")
    outcomes = sorted(answer.WhichOneof("outcome") for answer in found.values())
    assert outcomes == ["error", "error", "observation"]
    assert {one.error.code for one in found.values() if one.HasField("error")} == {code_pb2.RESOURCE_EXHAUSTED}
    read = sum(
        one.value
        for one in samples(server.app.metrics.tenant_tokens)
        if one.labels["tenant"] == "poor" and one.labels["kind"] == "prompt"
    )
    [observed] = [one.observation for one in found.values() if one.HasField("observation")]
    assert read == observed.usage.prompt_tokens == 6


async def test_a_monitor_of_models_that_a_tenant_may_not_use_looks_like_none(server, refused):
    found = await answers(server, [item(1)], "topics")
    other = await answers(server, [item(1, monitor="nope")], "topics")
    assert found[1].error.code == code_pb2.NOT_FOUND
    assert "served: none" in found[1].error.message
    assert reasons(found[1].error) == reasons(other[1].error)
    for monitor in ("news", "nope"):
        request = pb.ExamplesRequest(monitor=monitor, topic="a", sentiment="pos")
        call = MonitorServiceStub(server.channel).Examples(request, metadata=(("x-api-key", KEYS["topics"]),))
        await refused(call, grpc.StatusCode.NOT_FOUND)


def reasons(error: classification_pb2.Error) -> str:
    """What an error says, without the monitor's name and the request's id."""
    return re.sub(r"news|nope|request[^)]*", "", error.message)


async def examples(server, key: str, topic: str = "a", sentiment: str = "pos") -> list[str]:
    request = pb.ExamplesRequest(monitor="news", topic=topic, sentiment=sentiment)
    response = await MonitorServiceStub(server.channel).Examples(request, metadata=(("x-api-key", KEYS[key]),))
    assert all(abs(one.time.seconds - time.time()) < 60 for one in response.examples)
    return [one.text for one in response.examples]


async def test_a_tenant_sees_the_last_of_its_own_texts_masked(server, monkeypatch):
    says(server.engines["topics"], monkeypatch, 1, -1)
    says(server.engines["sentiment"], monkeypatch, -1, 1)
    mine = "good film of jane.doe@example.com from 192.0.2.7"
    for text in ("bad", "good", mine):
        await answers(server, [item(1, text)], "one")
    await answers(server, [item(1, "movie")], "two")
    assert await examples(server, "one") == ["good film of [EMAIL] from [IP]", "good"]
    assert await examples(server, "two") == ["movie"]
    assert await examples(server, "one", topic="b") == []
    assert await examples(server, "one", sentiment="neg") == []


async def test_examples_are_off_unless_asked_for(serve_config, refused, make_bert):
    models = {"topics": make_bert(labels=["a", "b"]), "sentiment": make_bert(labels=["neg", "pos"])}
    monitors = {"news": MonitorConfig(topic="topics", sentiment="sentiment")}
    async with serve_config(loopback(models, monitors=monitors)) as served:
        await answers(served, [item(1)])
        ask = MonitorServiceStub(served.channel).Examples
        call = ask(pb.ExamplesRequest(monitor="news", topic="a", sentiment="neg"))
        error = await refused(call, grpc.StatusCode.FAILED_PRECONDITION)
        assert "set `examples`" in error.details()
        call = ask(pb.ExamplesRequest(monitor="news", topic="x", sentiment=""))
        error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
        assert "topics: a, b" in error.details()
        assert "sentiments: neg, pos" in error.details()
