"""The objects for KServe and the values for llm-d's endpoint picker, as far as they can be checked without these."""

from typing import Any

import pytest
import yaml

from tuneserve.commands.run import serve
from tuneserve.server.metrics import Metrics

from .rendering import CHART, check

FILES = CHART.parent / "integrations"


@pytest.fixture
def kserve() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FILES / "kserve.yaml").read_text()))


def test_kserve_takes_the_objects(kserve: list[dict[str, Any]]) -> None:
    runtime, service = kserve
    for one in kserve:
        check(one)
    pod = {"containers": runtime["spec"]["containers"], "volumes": runtime["spec"]["volumes"]}
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod})
    asked = service["spec"]["predictor"]["model"]
    assert asked["modelFormat"]["name"] in [known["name"] for known in runtime["spec"]["supportedModelFormats"]]
    assert asked["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_kserve_starts_a_server_on_the_ports_that_it_calls(kserve: list[dict[str, Any]]) -> None:
    [container] = kserve[0]["spec"]["containers"]
    assert container["command"] == ["tuneserve", "serve"]
    asked = serve.make_context("serve", list(container["args"])).params
    grpc, metrics = container["ports"]
    assert "grpc" in grpc["name"]
    assert asked["listen"] == f"0.0.0.0:{grpc['containerPort']}"
    assert asked["metrics_listen"] == f"0.0.0.0:{metrics['containerPort']}"
    assert kserve[0]["spec"]["annotations"]["prometheus.kserve.io/port"] == str(metrics["containerPort"])
    assert {container[probe]["grpc"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} == {8033}


def test_the_picker_reads_metrics_that_the_server_has() -> None:
    values = yaml.safe_load((FILES / "endpoint-picker-values.yaml").read_text())
    picker = values["inferenceExtension"]
    config = yaml.safe_load(picker["pluginsCustomConfig"][picker["pluginsConfigFile"]])
    plugins = {plugin["type"]: plugin.get("parameters") for plugin in config["plugins"]}
    used = {one["pluginRef"] for profile in config["schedulingProfiles"] for one in profile["plugins"]}
    assert used | {config["parser"]["pluginRef"]} <= plugins.keys()
    extractor = plugins["core-metrics-extractor"]
    [engine] = extractor["engineConfigs"]
    assert engine["name"] == extractor["defaultEngine"]
    known = {metric.name for metric in Metrics().registry.collect()}
    assert {engine["queuedRequestsSpec"], engine["runningRequestsSpec"]} <= known
    assert picker["flags"]["model-server-metrics-port"] == 9033
