"""A real Prometheus with the chart's rules scrapes a real server: every expression of dashboards, alerts, KEDA and the
endpoint picker finds a series.

The engines are fakes. They export what the expressions ask of vLLM, and vLLM's source has these names.
"""

import asyncio
import contextlib
import importlib.util
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import helm_python
import promql_parser
import pytest
import yaml
from prometheus_client import Counter, Gauge

from tuneserve import checkpoint
from tuneserve.server.config import ConfigFile, IndexConfig, ModelConfig, MonitorConfig, ServerConfig
from tuneserve.v1 import answer_pb2, classification_pb2, generation_pb2, monitor_pb2
from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.monitor_pb2_grpc import MonitorServiceStub

from ..server.conftest import Served, served_by
from ..server.fake_engine import FakeEngine
from .monitoring import prometheus
from .rendering import CHART, MINIMAL, render
from .test_alerts import OURS, rules, selectors

CLASSIFY = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")]
)
STREAM = generation_pb2.GenerateRequest(
    model="chat", prompt=generation_pb2.Prompt(text="the"), sampling=generation_pb2.SamplingParams(max_tokens=8)
)
OBSERVE = monitor_pb2.ObserveStreamRequest(monitor="films", text="the film was good")
ANSWER = answer_pb2.AnswerRequest(index="docs", messages=[{"role": "user", "content": "who made the film"}])
DOCUMENTS = answer_pb2.UpsertDocumentsRequest(index="docs", documents=[answer_pb2.Document(id="1", text="a film")])
SEARCH = answer_pb2.SearchRequest(index="docs", query="film")
GAUGES = ("vllm:kv_cache_usage_perc", "vllm:num_requests_waiting")
COUNTER = "vllm:num_preemptions"


def exports(name: str, engine: FakeEngine) -> None:
    for metric in GAUGES:
        Gauge(metric, "Of vLLM.", ["model_name"], registry=engine.registry).labels(name)
    Counter(COUNTER, "Of vLLM.", ["model_name"], registry=engine.registry).labels(name)


@pytest.fixture
async def server(
    make_bert: Callable[..., Path], make_llama: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[Served]:
    directory = make_bert("ForSequenceClassification", ["neg", "pos"])
    manifest = checkpoint.describe(directory)
    manifest.label_distribution.update({"neg": 0.4, "pos": 0.6})
    checkpoint.seal(directory, manifest)
    models = {
        "sentiment": ModelConfig(path=directory),
        "chat": ModelConfig(path=make_llama(), max_queue=4),
        "vectors": ModelConfig(path=make_bert("Model", [])),
    }
    everywhere = dict.fromkeys(("listen", "metrics_listen", "admin_listen"), "127.0.0.1:0")
    monitors = {"films": MonitorConfig(topic="sentiment", sentiment="sentiment")}
    indexes = {"docs": IndexConfig(path=tmp_path / "docs", embedding="vectors")}
    config = ServerConfig(models=models, monitors=monitors, indexes=indexes, reload_models=True, **everywhere)
    file = tmp_path / "server.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    async with served_by(config, exports, file=ConfigFile(file)) as served:
        yield served


async def load(server: Served) -> None:
    """Calls of both kinds, more than the chat model takes, and some that fail, until it is cancelled."""
    classify = ClassificationServiceStub(server.channel).Classify
    stream = GenerationServiceStub(server.channel).GenerateStream
    observe = MonitorServiceStub(server.channel).ObserveStream
    answers = AnswerServiceStub(server.channel)
    await answers.UpsertDocuments(DOCUMENTS)
    for engine in server.engines.values():
        engine.delay = 0.02

    async def generate() -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in stream(STREAM):
                pass

    sentiment = server.engines["sentiment"]
    while True:
        await asyncio.gather(classify(CLASSIFY), *(generate() for _ in range(8)))
        async for _ in observe(iter([OBSERVE])):
            pass
        await answers.Search(SEARCH)
        async for _ in answers.Answer(ANSWER):
            pass
        sentiment.broken = RuntimeError("broken")
        assert await classify(CLASSIFY).code() == grpc.StatusCode.INTERNAL
        sentiment.broken = None


def dashboards(chart: helm_python.Chart) -> list[str]:
    """The expressions of all panels."""
    files = render(chart, MINIMAL | {"dashboardsEnabled": True})["configmap-dashboards"]["data"]
    assert files.keys() == {path.name for path in (CHART / "dashboards").iterdir()}
    targets = [target for file in files.values() for panel in json.loads(file)["panels"] for target in panel["targets"]]
    assert len(targets) > 30
    return [target["expr"].replace("$namespace", "ml").replace("$job", OURS["job"]) for target in targets]


def asked(chart: helm_python.Chart) -> set[str]:
    """Every expression that has a series while nothing is wrong: of an alert, each selector."""
    keda = {"kedaEnabled": True, "kedaPrometheusAddress": "http://prometheus:9090"}
    [trigger] = render(chart, MINIMAL | keda)["scaledobject"]["spec"]["triggers"]
    parsed = [promql_parser.parse(rule["expr"]) for group in rules(chart, {}) for rule in group["rules"]]
    found = {one.prettify() for expression in parsed for one in selectors(expression)}
    picker = yaml.safe_load((CHART.parent / "integrations" / "endpoint-picker-values.yaml").read_text())
    config = next(iter(picker["inferenceExtension"]["pluginsCustomConfig"].values()))
    read = re.findall(r"\w+Spec: (\S+)", config)
    assert len(read) == 3
    return {*dashboards(chart), trigger["metadata"]["query"], *read, *(one for one in found if "kube_" not in one)}


async def test_every_expression_finds_a_series(
    chart: helm_python.Chart, server: Served, kept: Callable[..., Path], tmp_path: Path
) -> None:
    missing = asked(chart)
    loading = asyncio.create_task(load(server))
    async with prometheus(kept, tmp_path, server.app.metrics_address, rules(chart, {})) as running:
        for _ in range(120):
            with contextlib.suppress(OSError):
                missing = {one for one in missing if not await asyncio.to_thread(running.finds, one)}
            if not missing:
                break
            assert not loading.done(), loading.exception()
            await asyncio.sleep(1)
    loading.cancel()
    assert not missing


def test_vllm_has_the_metrics_that_are_asked_for(chart: helm_python.Chart) -> None:
    [package] = importlib.util.find_spec("vllm").submodule_search_locations
    source = (Path(package) / "v1" / "metrics" / "loggers.py").read_text()
    known = {name for name in re.findall(r'"(vllm:\w+)"', source)}
    used = {name for one in asked(chart) for name in re.findall(r"vllm:\w+", one)}
    assert used == {*GAUGES, f"{COUNTER}_total", "vllm:num_requests_running"}
    assert {name.removesuffix("_total") for name in used} <= known
