"""Monitors of the settings: which models they may have, and cells that begin at 0."""

import pytest

from tuneserve.errors import UserError
from tuneserve.server.config import AliasConfig, MonitorConfig
from tuneserve.v1 import monitor_pb2
from tuneserve.v1.monitor_pb2_grpc import MonitorServiceStub

from ..conftest import loopback


@pytest.fixture
def models(make_bert, make_llama):
    return {
        "one": make_bert(labels=["neg", "pos"]),
        "several": make_bert(labels=["a", "b", "c"], problem_type="multi_label_classification"),
        "binary": make_bert(labels=["bad"]),
        "price": make_bert(labels=["price"], problem_type="regression"),
        "wide": make_bert(labels=[f"label {index}" for index in range(101)]),
        "ner": make_bert("ForTokenClassification", ["O", "B-PER"]),
    }


def config(models, topic, sentiment, **settings):
    aliases = {"both": AliasConfig(targets={"one": 1, "wide": 1})}
    return loopback(models, monitors={"news": MonitorConfig(topic=topic, sentiment=sentiment)}, aliases=aliases)


def cells(served) -> dict[tuple[str, str], float]:
    [metric] = served.app.metrics.observed.collect()
    found = [one for one in metric.samples if one.name.endswith("_total")]
    assert {one.labels["monitor"] for one in found} == {"news"}
    return {(one.labels["topic"], one.labels["sentiment"]): one.value for one in found}


async def test_every_cell_begins_at_zero(models, serve_config):
    async with serve_config(config(models, "several", "one")) as served:
        assert cells(served) == {(topic, sentiment): 0 for topic in "abc" for sentiment in ("neg", "pos")}


async def test_of_an_alias_the_cells_of_all_its_versions(models, serve_config):
    async with serve_config(config(models, "both", "one")) as served:
        assert len(cells(served)) == (2 + 101) * 2


async def test_the_cells_of_a_version_that_comes_later_begin_with_its_first_text(models, serve_config):
    async with serve_config(config(models, "several", "one")) as served:
        served.app.models.set_route("several", served.app.models.route("one"))
        request = monitor_pb2.ObserveStreamRequest(monitor="news", text="good")
        [answer] = [one async for one in MonitorServiceStub(served.channel).ObserveStream(iter([request]))]
        found = {cell: value for cell, value in cells(served).items() if cell[0] not in "abc"}
        assert found.pop((answer.observation.topics[0].label, answer.observation.sentiment.label)) == 1
        assert list(found.values()) == [0, 0, 0]


@pytest.mark.parametrize(
    ("topic", "sentiment", "message"),
    [
        ("ner", "one", "monitors.news.topic: ner is a model for token-classification"),
        ("one", "several", "monitors.news.sentiment: several is a multi-label classifier"),
        ("one", "binary", "monitors.news.sentiment: binary is a multi-label classifier"),
        ("price", "one", "monitors.news.topic: price is a regression classifier"),
        ("wide", "both", "monitors.news: 101 topics with 101 sentiments are 10201 series"),
    ],
)
async def test_other_models_are_refused_before_anything_loads(models, serve_config, topic, sentiment, message):
    with pytest.raises(UserError, match=message):
        async with serve_config(config(models, topic, sentiment)):
            pass
