"""A real Prometheus with the chart's rules scrapes a real server and an Envoy before it: every expression of
dashboards, alerts, autoscalers and the endpoint picker finds a series.

The engines are fakes. They export what the expressions ask of vLLM, and vLLM's source has these names. There is no
cluster: `cluster` stands in for kube-state-metrics.
"""

import asyncio
import contextlib
import importlib.util
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import helm_python
import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from tuneserve import checkpoint
from tuneserve.server.config import ConfigFile, IndexConfig, ModelConfig, MonitorConfig, ServerConfig
from tuneserve.v1 import answer_pb2, classification_pb2, generation_pb2, monitor_pb2
from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.monitor_pb2_grpc import MonitorServiceStub

from ..server.conftest import Served, served_by
from ..server.fake_engine import FakeEngine
from . import envoy
from .monitoring import prometheus
from .processes import free_port
from .rendering import CHART, MINIMAL, Manifests, render
from .test_alerts import OURS, rules
from .test_chart import NODES

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


@pytest.fixture
def cluster() -> Iterator[str]:
    """Where kube-state-metrics would be scraped: names and labels are those of its documentation (docs/metrics), of a
    release whose last pod ends. Yields its address.
    """
    registry = CollectorRegistry()

    def export(name: str, value: float, **labels: str) -> None:
        labels["namespace"] = "ml"
        Gauge(name, "Of a cluster.", list(labels), registry=registry).labels(**labels).set(value)

    name = "rel-tuneserve"
    for metric in ("kube_deployment_spec_replicas", "kube_deployment_status_replicas_available"):
        export(metric, 1, deployment=name)
    for metric in ("kube_statefulset_replicas", "kube_statefulset_status_replicas_ready"):
        export(metric, 1, statefulset=name)
    for metric, value in (("spec_max_replicas", 4), ("status_current_replicas", 1)):
        export(f"kube_horizontalpodautoscaler_{metric}", value, horizontalpodautoscaler=name)
    blind = {"horizontalpodautoscaler": name, "condition": "ScalingActive", "status": "false"}
    export("kube_horizontalpodautoscaler_status_condition", 0, **blind)
    export("kube_pod_deletion_timestamp", time.time(), pod=f"{name}-1-x", uid="1")
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def behind(chart: helm_python.Chart) -> Manifests:
    """The example of a release that scales to zero by its Gateway's metrics."""
    values = yaml.safe_load((CHART / "ci" / "gateway-values.yaml").read_text())
    return render(chart, values, name="tuned")


@contextlib.asynccontextmanager
async def gateway(
    chart: helm_python.Chart, server: Served, folder: Path
) -> AsyncIterator[tuple[grpc.aio.Channel, str]]:
    """That release's route before a server: yields a channel to it, and where its metrics are scraped."""
    manifest = behind(chart)["grpcroute"]
    port, admin = free_port(), free_port()
    for backend in manifest["spec"]["rules"][0]["backendRefs"]:
        envoy.put_endpoints(folder, backend["name"], [server.app.address])
    config = envoy.translated(manifest, folder, port)
    config["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}}
    [host] = manifest["spec"]["hostnames"]
    named = [("grpc.default_authority", host)]
    async with envoy.gateway(config, folder), grpc.aio.insecure_channel(f"127.0.0.1:{port}", named) as channel:
        yield channel, f"127.0.0.1:{admin}"


async def load(server: Served, gateway: grpc.aio.Channel) -> None:
    """Calls of all kinds, more than the chat model takes, and some that fail, until it is cancelled."""
    classify = ClassificationServiceStub(server.channel).Classify
    routed = ClassificationServiceStub(gateway).Classify
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
        await asyncio.gather(routed(CLASSIFY, wait_for_ready=True), *(generate() for _ in range(8)))
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


def with_bool(expression: str) -> str:
    """A rule's expression whose comparisons give 0 or 1: it has a series also while the alert is silent, if both sides
    of each comparison have one.
    """
    return re.sub(" ([=!]=|[<>]=?) ", r" \1 bool ", expression)


def asked(chart: helm_python.Chart) -> set[str]:
    """Every expression, so that it has a series while nothing is wrong."""
    groups = [group for values in ({}, NODES) for group in rules(chart, values)]
    scaled = {"kedaEnabled": True, "kedaPrometheusAddress": "http://prometheus:9090"}
    triggers = [
        *render(chart, MINIMAL | scaled)["scaledobject"]["spec"]["triggers"],
        # Its first query has no series here: it asks for another release's metrics.
        behind(chart)["scaledobject"]["spec"]["triggers"][1],
    ]
    scaler = render(chart, MINIMAL | {"autoscalingEnabled": True})["horizontalpodautoscaler"]["spec"]
    picker = yaml.safe_load((CHART.parent / "integrations" / "endpoint-picker-values.yaml").read_text())
    config = next(iter(picker["inferenceExtension"]["pluginsCustomConfig"].values()))
    read = re.findall(r"\w+Spec: (\S+)", config)
    assert len(read) == 3
    return {
        *dashboards(chart),
        *(with_bool(rule["expr"]) for group in groups for rule in group["rules"]),
        *(trigger["metadata"]["query"] for trigger in triggers),
        *(metric["pods"]["metric"]["name"] for metric in scaler["metrics"]),
        *read,
    }


async def test_every_expression_finds_a_series(
    chart: helm_python.Chart, server: Served, cluster: str, kept: Callable[..., Path], tmp_path: Path
) -> None:
    missing = asked(chart)
    async with gateway(chart, server, tmp_path) as (channel, admin):
        others = {"kube-state-metrics": (cluster, "/metrics"), "envoy": (admin, "/stats/prometheus")}
        loading = asyncio.create_task(load(server, channel))
        async with prometheus(kept, tmp_path, server.app.metrics_address, rules(chart, {}), others=others) as running:
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
