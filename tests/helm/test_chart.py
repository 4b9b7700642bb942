"""What the chart renders, and what it refuses."""

import operator
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import helm_python
import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

import tuneserve
from tuneserve.server import config as server_config
from tuneserve.server.models.health import MODEL_SERVICES
from tuneserve.server.text import redaction
from tuneserve.settings import Settings

from .rendering import CHART, MINIMAL, NEWEST, OLDEST, Manifests, check, container, render, templates

VARIANTS = sorted((CHART / "ci").glob("*-values.yaml"))
JOB = "rel-tuneserve-metrics"
KEDA = {"kedaEnabled": True, "kedaPrometheusAddress": "http://prometheus.monitoring:9090"}
ROUTE = {"grpcRouteEnabled": True, "grpcRouteParents": [{"name": "gateway", "namespace": "gateways"}]}
FETCH = {"fetch": {"sentiment": "s3://bucket/sentiment"}}
NODES = {
    "nodes": 2,
    "onEngineFailure": "exit",
    "models": {"chat": {"path": "/models/chat", "engine": {"tensor_parallel_size": 8, "pipeline_parallel_size": 2}}},
}
POOL = {"inferencePoolEnabled": True, "inferencePoolPicker": "picker-epp"}
RETRAIN = {"feedback": "/feedback/*/a/labels.jsonl", "output": "/models/loop"}
JOBS = {
    "modelsClaim": "tuned",
    "finetuneConfig": {"output": "/models/a"},
    "quantizeSource": "/models/a",
    "quantizeOutput": "/models/b",
    "predictCheckpoint": "/models/b",
    "predictRows": "/models/rows.csv",
    "predictOutput": "/models/answers",
    "feedbackClaim": "feedback",
    "retrainPolicy": RETRAIN,
}
CPU_USE = {
    "type": "Resource",
    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}},
}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
INDEX = {
    "path": "/indexes/docs",
    "embedding": "sentiment",
    "ranking": "sentiment",
    "generation": "sentiment",
    "gate": "/indexes/gate.json",
    "queryPrompt": "q",
    "passagePrompt": "p",
    "chunkTokens": 64,
    "keywordWeight": 0.5,
}


def read_server_config(manifests: Manifests, directory: Path) -> server_config.ServerConfig:
    """Loads the ConfigMap's file as the server does, with the paths of the pod moved below `directory`."""
    document = yaml.safe_load(manifests["configmap"]["data"]["server.yaml"])
    file = directory / "server.yaml"
    for model in document["models"].values():
        model["path"] = str(directory)
        model["adapters"] = dict.fromkeys(model.get("adapters", {}), str(directory))
    for key in document.get("tls", {}):
        document["tls"][key] = str(file)
    document |= {key: str(path) for key, path in (("tenants", file), ("models_root", directory)) if key in document}
    file.write_text(yaml.safe_dump(document))
    return server_config.load(file)


def snake_case(key: str) -> str:
    return re.sub("([A-Z])", r"_\1", key).lower()


def names(kind: type[Settings]) -> set[str]:
    return set(kind.model_fields)


@pytest.mark.parametrize("values", [None, *VARIANTS], ids=lambda path: path.stem if path else "defaults")
def test_lints(values: Path | None) -> None:
    report = helm_python.lint(CHART, yaml.safe_load(values.read_text()) if values else None, strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("values", VARIANTS, ids=lambda path: path.stem)
def test_variants_render(chart: helm_python.Chart, values: Path, tmp_path: Path) -> None:
    manifests = render(chart, yaml.safe_load(values.read_text()))
    assert read_server_config(manifests, tmp_path).models.keys() == yaml.safe_load(values.read_text())["models"].keys()


@pytest.mark.parametrize("values", VARIANTS, ids=lambda path: path.stem)
def test_variants_are_valid_for_every_kubernetes(chart: helm_python.Chart, values: Path) -> None:
    versions = dict.fromkeys(kubernetes_validate.utils.all_versions())
    assert next(iter(versions)).startswith(OLDEST)
    for manifest in render(chart, yaml.safe_load(values.read_text())).values():
        check(manifest, versions)


def test_app_version_is_the_package_version(chart: helm_python.Chart) -> None:
    assert chart.metadata["appVersion"] == tuneserve.__version__
    assert container(render(chart, MINIMAL))["image"] == f"tuneserve:{tuneserve.__version__}"


def test_server_config_holds_every_setting_of_a_model(chart: helm_python.Chart, tmp_path: Path) -> None:
    model = {
        "path": "/models/a",
        "dtype": "bfloat16",
        "maxLength": 2048,
        "maxNumSeqs": 64,
        "maxInputs": 16,
        "maxExplainedWords": 32,
        "maxQueue": 1000000,
        "maxQueueTokens": 50000,
        "maxWaitSeconds": 2.5,
        "redact": ["email", "iban"],
        "toolParser": "granite-20b-fc",
        "reasoningParser": "qwen3",
        "adapters": {"Legal.v1": "/models/legal"},
        "maxAdapters": 2,
        "maxAdapterRank": 64,
        "gpuMemoryUtilization": 0.4,
        "kvCacheGib": 1.5,
        "engine": {"tensor_parallel_size": 2, "speculative_config": {"method": "ngram", "prompt_lookup_max": 4}},
    }
    values = {"models": {"a": model, "1": {"path": "/models/b"}}, "drainSeconds": 7, "grpcPort": 5001}
    config = read_server_config(render(chart, values), tmp_path)
    assert (config.listen, config.metrics_listen, config.drain_seconds) == ("0.0.0.0:5001", "0.0.0.0:9033", 7)
    assert config.models["a"] == server_config.ModelConfig(
        path=tmp_path,
        dtype="bfloat16",
        max_length=2048,
        max_num_seqs=64,
        max_inputs=16,
        max_explained_words=32,
        max_queue=1000000,
        max_queue_tokens=50000,
        max_wait_seconds=2.5,
        redact=("email", "iban"),
        tool_parser="granite-20b-fc",
        reasoning_parser="qwen3",
        adapters={"Legal.v1": tmp_path},
        max_adapters=2,
        max_adapter_rank=64,
        gpu_memory_utilization=0.4,
        kv_cache_gib=1.5,
        engine=model["engine"],
    )
    assert config.models["1"] == server_config.ModelConfig(path=tmp_path)
    # The schema knows every setting that the server knows, and no other.
    known = chart.schema["definitions"]["model"]["properties"]
    assert set(map(snake_case, known)) == names(server_config.ModelConfig) == set(map(snake_case, model))
    assert known["redact"]["items"]["enum"] == list(redaction.KINDS)
    assert known["toolParser"]["enum"] == list(get_args(server_config.ToolParser))
    assert known["reasoningParser"]["enum"] == list(get_args(server_config.ReasoningParser))


def test_server_config_holds_every_setting_of_the_server(chart: helm_python.Chart, tmp_path: Path) -> None:
    values = MINIMAL | {
        "aliases": {"reviews": {"targets": {"sentiment": 9}}},
        "monitors": {"news": {"topic": "sentiment", "sentiment": "reviews", "examples": 5}},
        "indexes": {"docs": INDEX},
        "indexesClaim": "texts",
        "feedbackClaim": "kept",
        "feedbackMaxRows": 16,
        "feedbackMaxBytes": 1 << 40,
        "feedbackRedact": ["ip"],
        "tlsSecret": "web",
        "clientCaSecret": "clients",
        "tenantsSecret": "keys",
        "adminEnabled": True,
        "modelsRoot": "/models",
        "processes": 2,
        "maxConnections": 10,
        "maxConnectionAgeSeconds": 11,
        "maxConnectionIdleSeconds": 12.5,
        "keepaliveSeconds": 13,
        "maxStreams": 14,
        "maxCalls": 15,
        "lingerSeconds": 6,
        "drainSeconds": 7,
        "stallSeconds": 8,
        "watchdogSeconds": 9.5,
        "loadSeconds": 90,
        "onEngineFailure": "exit",
        "otlpEndpoint": "http://collector.observability:4317",
        "logRequests": False,
        "logContent": True,
    }
    manifests = render(chart, values)
    document = yaml.safe_load(manifests["configmap"]["data"]["server.yaml"])
    assert set(document) == names(server_config.ServerConfig)
    assert set(document["tls"]) == names(server_config.TlsConfig)
    config = read_server_config(manifests, tmp_path)
    assert (config.linger_seconds, config.drain_seconds, config.stall_seconds) == (6, 7, 8)
    assert (config.watchdog_seconds, config.load_seconds, config.keepalive_seconds) == (9.5, 90, 13)
    assert (config.processes, config.max_connections, config.max_streams, config.max_calls) == (2, 10, 14, 15)
    assert (config.max_connection_age_seconds, config.max_connection_idle_seconds) == (11, 12.5)
    assert (config.on_engine_failure, config.log_requests, config.log_content) == ("exit", False, True)
    assert (config.health_listen, config.admin_listen) == ("0.0.0.0:8034", "127.0.0.1:8035")
    assert config.otlp_endpoint == "http://collector.observability:4317"
    assert (config.aliases["reviews"].targets, config.reload_models) == ({"sentiment": 9}, False)
    news = server_config.MonitorConfig(topic="sentiment", sentiment="reviews", examples=5)
    assert config.monitors == {"news": news}
    assert config.indexes["docs"] == server_config.IndexConfig(
        path=Path("/indexes/docs"),
        embedding="sentiment",
        ranking="sentiment",
        generation="sentiment",
        gate=Path("/indexes/gate.json"),
        query_prompt="q",
        passage_prompt="p",
        chunk_tokens=64,
        keyword_weight=0.5,
    )
    known = chart.schema["properties"]["indexes"]["additionalProperties"]["properties"]
    assert set(map(snake_case, known)) == names(server_config.IndexConfig) == set(map(snake_case, INDEX))
    [mounted] = [one for one in container(manifests)["volumeMounts"] if one["name"] == "indexes"]
    assert mounted == {"name": "indexes", "mountPath": "/indexes"}
    assert {"name": "indexes", "persistentVolumeClaim": {"claimName": "texts"}} in manifests["deployment"]["spec"][
        "template"
    ]["spec"]["volumes"]
    assert config.feedback == server_config.FeedbackConfig(
        path=Path("/feedback"), max_rows=16, max_bytes=1 << 40, redact=("ip",)
    )
    following = read_server_config(render(chart, MINIMAL | {"reloadModels": True}), tmp_path)
    assert following.reload_models


def test_the_chart_has_the_servers_own_defaults(chart: helm_python.Chart, tmp_path: Path) -> None:
    here = {"listen": "0.0.0.0:8033", "metrics_listen": "0.0.0.0:9033", "health_listen": "0.0.0.0:8034"}
    models = {"sentiment": server_config.ModelConfig(path=tmp_path)}
    assert read_server_config(render(chart, MINIMAL), tmp_path) == server_config.ServerConfig(models=models, **here)


def test_secrets_are_mounted_where_the_server_looks(chart: helm_python.Chart) -> None:
    manifests = render(chart, MINIMAL | {"tlsSecret": "web", "clientCaSecret": "clients", "tenantsSecret": "keys"})
    document = yaml.safe_load(manifests["configmap"]["data"]["server.yaml"])
    mounts = {mount["mountPath"]: mount for mount in container(manifests)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in manifests["deployment"]["spec"]["template"]["spec"]["volumes"]}

    def behind(path: str) -> tuple[str, str]:
        directory, _, file = path.rpartition("/")
        mount = mounts[directory]
        # With subPath the files would never change.
        assert mount["readOnly"]
        assert "subPath" not in mount
        secret = volumes[mount["name"]]["secret"]
        # For the owner and fsGroup, and nobody else.
        assert secret["defaultMode"] == 0o440
        return secret["secretName"], file

    assert behind(document["tls"]["certificate"]) == ("web", "tls.crt")
    assert behind(document["tls"]["key"]) == ("web", "tls.key")
    assert behind(document["tls"]["client_ca"]) == ("clients", "ca.crt")
    assert behind(document["tenants"]) == ("keys", "tenants.yaml")


def test_administrators_come_through_the_pods_loopback_alone(chart: helm_python.Chart) -> None:
    manifests = render(chart, MINIMAL | {"adminEnabled": True, "adminPort": 9000})
    document = yaml.safe_load(manifests["configmap"]["data"]["server.yaml"])
    assert document["admin_listen"] == "127.0.0.1:9000"
    assert 9000 not in {port["containerPort"] for port in container(manifests)["ports"]}
    assert "admin_listen" not in yaml.safe_load(render(chart, MINIMAL)["configmap"]["data"]["server.yaml"])


@pytest.mark.parametrize("more", [{}, {"tlsSecret": "web"}])
def test_probes_ask_a_port_of_their_own(chart: helm_python.Chart, tmp_path: Path, more: dict[str, str]) -> None:
    manifests = render(chart, MINIMAL | {"healthPort": 8134} | more)
    server = container(manifests)
    assert read_server_config(manifests, tmp_path).health_listen == "0.0.0.0:8134"
    assert {server[probe]["grpc"]["port"] for probe in PROBES} == {8134}
    # A load balancer's port has callers' services only.
    assert [port["port"] for port in manifests["service"]["spec"]["ports"]] == [8033]


def test_pod_is_locked_down_and_probed(chart: helm_python.Chart) -> None:
    manifests = render(chart, MINIMAL | {"drainSeconds": 60, "startupSeconds": 602})
    pod = manifests["deployment"]["spec"]["template"]["spec"]
    server = container(manifests)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["mountPath"] for mount in server["volumeMounts"] if not mount.get("readOnly")} == {"/tmp", "/dev/shm"}
    assert {server[probe]["grpc"]["port"] for probe in PROBES} == {8034}
    # Nothing restarts the pod while it loads, nor while it starts a dead engine again.
    assert server["startupProbe"]["failureThreshold"] * server["startupProbe"]["periodSeconds"] >= 602
    assert [server[probe]["grpc"].get("service") for probe in PROBES] == [None, None, MODEL_SERVICES[0]]
    assert server["command"] == ["tuneserve", "serve", "--config", "/etc/tuneserve/server.yaml"]


@pytest.mark.parametrize("values", VARIANTS, ids=lambda path: path.stem)
def test_variants_meet_the_restricted_pod_security_standard(chart: helm_python.Chart, values: Path) -> None:
    manifests = render(chart, yaml.safe_load(values.read_text()))
    pods = [template["spec"] for manifest in manifests.values() for template in templates(manifest)]
    assert len(pods) >= 1
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for pod in pods:
        assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= allowed
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        for one in (*pod.get("initContainers", ()), *pod["containers"]):
            assert one["securityContext"]["allowPrivilegeEscalation"] is False
            assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert one["resources"]["limits"]["memory"]


def test_a_pod_is_not_killed_before_it_has_drained(chart: helm_python.Chart) -> None:
    def ends(values: dict[str, int]) -> tuple[list[str], int]:
        manifests = render(chart, MINIMAL | values)
        hook = container(manifests)["lifecycle"]["preStop"]["exec"]["command"]
        return hook, manifests["deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]

    assert ends({}) == (["sleep", "5"], 5 + 3 + 30 + 25)
    steps = {"preStopSeconds": 15, "lingerSeconds": 4, "drainSeconds": 60}
    assert ends(steps) == (["sleep", "15"], 15 + 4 + 60 + 25)
    assert ends(steps | {"terminationGraceSeconds": 300}) == (["sleep", "15"], 300)


def test_gpu_is_passed_through(chart: helm_python.Chart) -> None:
    server = container(render(chart, MINIMAL | {"resources": {"limits": {"nvidia.com/gpu": 2}}}))
    assert server["resources"]["limits"] == {"nvidia.com/gpu": 2, "memory": "8Gi"}


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({"tag": "1.2.3"}, "tuneserve:1.2.3"),
        ({"digest": "sha256:" + "a" * 64, "tag": "1.2.3"}, "tuneserve@sha256:" + "a" * 64),
        ({"repository": "registry.example.com:5000/ml/tune_serve"}, "registry.example.com:5000/ml/tune_serve:0.1.0"),
    ],
)
def test_image(chart: helm_python.Chart, image: dict[str, str], expected: str) -> None:
    assert container(render(chart, MINIMAL | {"image": image}))["image"] == expected


def test_models_come_from_a_claim_a_volume_or_the_image(chart: helm_python.Chart) -> None:
    def models_volume(values: dict[str, Any]) -> list[dict[str, Any]]:
        manifests = render(chart, MINIMAL | values)
        mounted = [mount["name"] for mount in container(manifests)["volumeMounts"]]
        volumes = manifests["deployment"]["spec"]["template"]["spec"]["volumes"]
        assert mounted == [volume["name"] for volume in volumes]
        return [volume for volume in volumes if volume["name"] == "models"]

    assert models_volume({"modelsClaim": "tuned"}) == [
        {"name": "models", "persistentVolumeClaim": {"claimName": "tuned"}}
    ]
    assert models_volume({"modelsVolume": {"hostPath": {"path": "/srv"}}}) == [
        {"name": "models", "hostPath": {"path": "/srv"}}
    ]
    assert models_volume({}) == []


def test_models_come_from_an_image_of_their_own(chart: helm_python.Chart) -> None:
    source = {"image": {"reference": "registry.example.com/ml/models:1.0", "pullPolicy": "IfNotPresent"}}
    rendered = chart.render(MINIMAL | {"modelsVolume": source}, name="rel", namespace="ml")
    deployment = yaml.safe_load(rendered["tuneserve/templates/deployment.yaml"])
    assert {"name": "models", **source} in deployment["spec"]["template"]["spec"]["volumes"]
    check(deployment, ["1.31", NEWEST])
    with pytest.raises(kubernetes_validate.ValidationError, match="image"):
        check(deployment, ["1.30"])


def test_models_are_fetched_before_the_server_starts(chart: helm_python.Chart) -> None:
    from tuneserve.commands.ship import fetch

    secret = {"name": "HF_TOKEN", "value": "x"}
    values = MINIMAL | {"fetch": {"sentiment": "s3://bucket/a"}, "fetchEnv": [secret], "networkPolicyEnabled": True}
    manifests = render(chart, values)
    spec = manifests["deployment"]["spec"]["template"]["spec"]
    [fetching] = spec["initContainers"]
    assert fetching["command"][:2] == ["tuneserve", "fetch"]
    asked = fetch.make_context("fetch", fetching["command"][2:]).params
    assert (asked["source"], str(asked["output"]), asked["if_missing"]) == ("s3://bucket/a", "/models/sentiment", True)
    assert secret in fetching["env"]
    assert secret not in container(manifests)["env"], "the server needs no credentials"
    mounts = [
        {mount["name"]: mount for mount in one["volumeMounts"]}["models"] for one in (fetching, container(manifests))
    ]
    assert [mount.get("readOnly", False) for mount in mounts] == [False, True]
    assert {"name": "models", "emptyDir": {"sizeLimit": "50Gi"}} in spec["volumes"]
    [rule] = manifests["networkpolicy"]["spec"]["egress"]
    assert [port["port"] for port in rule["ports"]] == [443, 53, 53]
    assert manifests["deployment"]["spec"]["progressDeadlineSeconds"] == 1800 + 120 + 3600
    assert "initContainers" not in render(chart, MINIMAL)["deployment"]["spec"]["template"]["spec"]


def test_fetching_leaves_a_fenced_pod_by_the_ports_that_it_names(chart: helm_python.Chart) -> None:
    values = {
        "fetch": {"a": "https://store.example.com:8443/a", "b": "s3://bucket/b", "c": "org/c@v1"},
        "models": {name: {"path": f"/models/{name}"} for name in ("a", "b", "c")},
        "fetchEnv": [
            {"name": "AWS_ENDPOINT_URL", "value": "http://minio.store:9000"},
            {"name": "HTTPS_PROXY", "value": "http://user:secret@proxy/"},
            {"name": "HF_TOKEN", "value": "https"},
        ],
        "networkPolicyEnabled": True,
    }
    [rule] = render(chart, values)["networkpolicy"]["spec"]["egress"]
    assert sorted(port["port"] for port in rule["ports"]) == [53, 53, 80, 443, 8443, 9000]


def test_the_values_of_the_documentation_render(chart: helm_python.Chart) -> None:
    page = (CHART.parent / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    written = textwrap.dedent(re.search(r"values\.yaml <<END\n(.*?)    END\n", page, re.DOTALL)[1])
    for placeholder in ("REGISTRY", "BUCKET", "OPERATOR"):
        written = written.replace(placeholder, placeholder.lower())
    enabled = re.findall(r"(\w+)=true", re.search(r"--set (\S+)", page)[1])
    values = yaml.safe_load(written) | dict.fromkeys(enabled, True)
    manifests = render(chart, values, name="tuned")
    assert {
        "deployment",
        "servicemonitor",
        "prometheusrule",
        "configmap-dashboards",
        "scaledobject",
    } <= manifests.keys()
    assert f"deployment/{manifests['deployment']['metadata']['name']} " in page


def test_new_configuration_makes_new_pods(chart: helm_python.Chart) -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = render(chart, MINIMAL | values)["deployment"]["spec"]["template"]
        return template["metadata"]["annotations"]["checksum/config"]

    assert checksum({}) == checksum({"replicaCount": 3})
    assert checksum({}) != checksum({"drainSeconds": 31})
    changed = {"models": {"sentiment": {"path": "/models/other"}}}
    assert checksum({}) != checksum(changed)


def test_running_pods_take_other_models_if_asked_to(chart: helm_python.Chart) -> None:
    def annotations(values: dict[str, Any]) -> dict[str, str]:
        template = render(chart, MINIMAL | {"reloadModels": True} | values)["deployment"]["spec"]["template"]
        return template["metadata"]["annotations"]

    changed = {"models": {"b": {"path": "/models/b"}}, "aliases": {"sentiment": {"targets": {"b": 1}}}}
    assert annotations({}) == annotations(changed)
    assert annotations({}) != annotations({"drainSeconds": 31})
    # A file mounted by subPath would never change.
    [mount] = [one for one in container(render(chart, MINIMAL))["volumeMounts"] if one["name"] == "config"]
    assert "subPath" not in mount


def test_selectors_select_the_pods_whatever_labels_are_added(chart: helm_python.Chart) -> None:
    added = {"app.kubernetes.io/name": "other", "team": "search"}
    values = MINIMAL | {"podLabels": added, "networkPolicyEnabled": True, "serviceMonitorEnabled": True}
    manifests = render(chart, values)
    labels = manifests["deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels["team"] == "search"
    for selector in (
        manifests["deployment"]["spec"]["selector"]["matchLabels"],
        manifests["service"]["spec"]["selector"],
        manifests["service-metrics"]["spec"]["selector"],
        manifests["poddisruptionbudget"]["spec"]["selector"]["matchLabels"],
        manifests["networkpolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    monitored = manifests["servicemonitor"]["spec"]["selector"]["matchLabels"].items()
    assert monitored <= manifests["service-metrics"]["metadata"]["labels"].items()
    assert not monitored <= manifests["service"]["metadata"]["labels"].items()


def test_metrics_are_not_on_the_service_that_may_be_public(chart: helm_python.Chart) -> None:
    manifests = render(chart, MINIMAL | {"serviceType": "LoadBalancer"})
    assert [port["name"] for port in manifests["service"]["spec"]["ports"]] == ["grpc"]
    assert manifests["service-metrics"]["spec"]["type"] == "ClusterIP"


def test_calls_are_spread_by_a_service_of_its_own(chart: helm_python.Chart) -> None:
    """A Service that is installed can't become headless: Kubernetes refuses another clusterIP."""
    manifests = render(chart, MINIMAL | {"serviceType": "LoadBalancer"})
    spec = manifests["service-headless"]["spec"]
    assert (spec["type"], spec["clusterIP"]) == ("ClusterIP", "None")
    assert spec["selector"] == manifests["service"]["spec"]["selector"]
    assert spec["ports"] == manifests["service"]["spec"]["ports"]


@pytest.mark.parametrize(("values", "protocol"), [({}, "kubernetes.io/h2c"), ({"tlsSecret": "web"}, None)])
def test_proxies_are_told_that_plaintext_is_http_2(chart: helm_python.Chart, values, protocol) -> None:
    [port] = render(chart, MINIMAL | values)["service"]["spec"]["ports"]
    assert port.get("appProtocol") == protocol


def test_optional_objects_are_made_only_when_asked_for(chart: helm_python.Chart) -> None:
    always = {"configmap", "deployment", "inference", "service", "service-headless", "service-metrics"}
    off = {"podDisruptionBudgetEnabled": False, "serviceAccountCreate": False}
    manifests = render(chart, MINIMAL | off)
    assert manifests.keys() == always
    assert manifests["deployment"]["spec"]["template"]["spec"]["serviceAccountName"] == "default"
    on = {
        "dashboardsEnabled": True,
        "networkPolicyEnabled": True,
        "prometheusRuleEnabled": True,
        "serviceMonitorEnabled": True,
    }
    manifests = render(chart, MINIMAL | on | {"autoscalingEnabled": True} | ROUTE | POOL | JOBS)
    assert manifests.keys() == always | {
        "configmap-dashboards",
        "configmap-finetune",
        "configmap-retrain",
        "cronjob-retrain",
        "job-finetune",
        "job-predict",
        "job-quantize",
        "grpcroute",
        "horizontalpodautoscaler",
        "inferencepool",
        "networkpolicy",
        "poddisruptionbudget",
        "prometheusrule",
        "prometheusrule-burn",
        "prometheusrule-models",
        "serviceaccount",
        "servicemonitor",
    }
    # The autoscaler owns the number of replicas.
    assert "replicas" not in manifests["deployment"]["spec"]
    assert "replicas" not in render(chart, MINIMAL | KEDA)["deployment"]["spec"]


def test_the_job_of_alerts_is_what_the_prometheus_operator_calls_it(chart: helm_python.Chart) -> None:
    manifests = render(chart, MINIMAL | {"prometheusRuleEnabled": True})
    assert manifests["service-metrics"]["metadata"]["name"] == JOB
    assert JOB in manifests["prometheusrule"]["spec"]["groups"][0]["rules"][0]["expr"]


def test_traces_leave_a_fenced_pod(chart: helm_python.Chart) -> None:
    def egress(values: dict[str, Any]) -> list[Any] | None:
        return render(chart, MINIMAL | {"networkPolicyEnabled": True} | values)["networkpolicy"]["spec"].get("egress")

    assert egress({}) is None
    [rule] = egress({"otlpEndpoint": "http://collector:4317"}) or []
    assert [port["port"] for port in rule["ports"]] == [4317, 53, 53]


def test_the_test_gets_past_the_fence(chart: helm_python.Chart) -> None:
    values = {"networkPolicyEnabled": True, "networkPolicyGrpcFrom": [{"podSelector": {"matchLabels": {"a": "b"}}}]}
    manifests = render(chart, MINIMAL | values)
    grpc, _ = manifests["networkpolicy"]["spec"]["ingress"]
    assert {"podSelector": {"matchLabels": manifests["inference"]["metadata"]["labels"]}} in grpc["from"]


def test_recreate_has_no_rolling_update(chart: helm_python.Chart) -> None:
    deployment = render(chart, MINIMAL | {"updateStrategy": "Recreate"})["deployment"]
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_notes_name_the_next_command(chart: helm_python.Chart) -> None:
    notes = chart.render(MINIMAL, name="rel", namespace="ml")["tuneserve/templates/NOTES.txt"]
    assert "kubectl --namespace ml rollout status deployment/rel-tuneserve" in notes
    assert "tuneserve call models --target localhost:8033" in notes


@pytest.mark.parametrize("name", ["1", "true", "a.b", "x" * 53])
def test_release_names_that_yaml_or_kubernetes_could_trip_over(chart: helm_python.Chart, name: str) -> None:
    manifests = render(chart, MINIMAL, name=name)
    assert re.fullmatch(r"[-a-z0-9]{1,63}", manifests["service-metrics"]["metadata"]["name"])
    assert manifests["configmap"]["metadata"]["name"] == manifests["deployment"]["metadata"]["name"]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"image": {"tag": "latest"}}, "/image/tag"),
        ({"image": {"tag": 1.2}}, "/image/tag"),
        ({"image": {"repository": "tuneserve:latest"}}, "/image/repository"),
        ({"image": {"digest": "sha256:12"}}, "/image/digest"),
        ({"model": {}}, "'model'"),
        ({"models": {"a": {}}}, "/models/a"),
        ({"models": {"a": {"path": "models/a"}}}, "/models/a/path"),
        ({"models": {"a": {"path": "/a", "maxque": 3}}}, "maxque"),
        ({"models": {"a": {"path": "/a", "maxQueue": 0}}}, "/models/a/maxQueue"),
        ({"models": {"a": {"path": "/a", "dtype": "int8"}}}, "/models/a/dtype"),
        ({"models": {"a": {"path": "/a", "gpuMemoryUtilization": 1.5}}}, "/models/a/gpuMemoryUtilization"),
        ({"models": {"-a": {"path": "/a"}}}, "-a"),
        ({"aliases": {"a": {"targets": {"sentiment": 0}}}}, "/aliases/a/targets/sentiment"),
        ({"monitors": {"news": {"topic": "sentiment"}}}, "/monitors/news"),
        ({"fetch": {"a": "ftp://host/a"}}, "/fetch/a"),
        ({"fetch": {"a": "s3://bucket/a;b"}}, "/fetch/a"),
        ({"replicaCount": "2"}, "/replicaCount"),
        ({"runAsUser": 0}, "/runAsUser"),
        ({"grpcPort": 80}, "/grpcPort"),
        ({"serviceType": "ExternalName"}, "/serviceType"),
        ({"models": {"a": {"path": "/a", "redact": ["mail"]}}}, "/models/a/redact/0"),
        ({"models": {"a": {"path": "/a", "adapters": {"b": "b"}}}}, "/models/a/adapters/b"),
        ({"models": {"a": {"path": "/a", "engine": {"blockSize": 32}}}}, "blockSize"),
        ({"onEngineFailure": "ignore"}, "/onEngineFailure"),
        ({"watchdogSeconds": 0}, "/watchdogSeconds"),
        ({"otlpEndpoint": "collector:4317"}, "/otlpEndpoint"),
        ({"tlsSecret": "A_B"}, "/tlsSecret"),
        ({"resources": {"limits": {"memory": "8 GB"}}}, "/resources/limits/memory"),
        ({"nameOverride": "Upper"}, "/nameOverride"),
        ({"shmSize": "lots"}, "/shmSize"),
        ({"prometheusRuleNegative": "neg\r"}, "/prometheusRuleNegative"),
        ({"prometheusRuleNegative": "neg\u2028"}, "/prometheusRuleNegative"),
        ({"finetuneConfig": {"epoch": 3}}, "'/finetuneConfig': additional properties 'epoch'"),
        ({"finetuneConfig": {"epochs": 0}}, "/finetuneConfig/epochs"),
        ({"finetuneConfig": {"output": "a"}}, "/finetuneConfig/output"),
        ({"retrainPolicy": {"min_row": 3}}, "'/retrainPolicy': additional properties 'min_row'"),
        ({"retrainPolicy": {"finetune": {"epoch": 3}}}, "'/retrainPolicy/finetune': additional properties 'epoch'"),
        ({"retrainPolicy": {"server": {"percents": 3}}}, "'/retrainPolicy/server': additional properties 'percents'"),
    ],
)
def test_wrong_values_are_refused_by_name(chart: helm_python.Chart, values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=re.escape(named)):
        chart.render(MINIMAL | values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": {}}, "models: name at least one"),
        ({"modelsClaim": "a", "modelsVolume": {"emptyDir": {}}}, "modelsClaim and modelsVolume: give one"),
        ({"grpcPort": 9033}, "give different ports"),
        ({"healthPort": 8033}, "give different ports"),
        ({"adminEnabled": True, "adminPort": 9033}, "give different ports"),
        ({"modelsMountPath": "/tmp/"}, "modelsMountPath: something else is mounted at /tmp,"),
        ({"feedbackMountPath": "/models"}, "feedbackMountPath: something else is mounted at /models,"),
        ({"indexesMountPath": "/etc/tuneserve"}, "indexesMountPath: something else is mounted at /etc/tuneserve,"),
        ({"clientCaSecret": "clients"}, "clientCaSecret: needs tlsSecret"),
        ({"models": {"a": {"path": "/a", "adapters": {"b": "/b"}}}}, "models.a.maxAdapters: must be at least 1"),
        (FETCH | {"modelsClaim": "a"}, "fetch: needs modelsClaim and modelsVolume to be empty"),
        (FETCH | {"reloadModels": True}, "fetch: needs reloadModels to be false"),
        ({"reloadModels": True, "processes": 2}, "reloadModels: needs processes to be 1"),
        (FETCH | {"models": {"b": {"path": "/models/b"}}}, "models.b.path: /models/b is not fetched"),
        ({"aliases": {"a": {"targets": {}}}}, "aliases.a.targets: name at least one"),
        ({"aliases": {"a": {"targets": {"b": 1}}}}, "aliases.a: b is not one of models"),
        (
            {"aliases": {"a": {"targets": {"sentiment": 1}, "shadow": "sentiment"}}},
            "aliases.a.shadow: sentiment is also a target",
        ),
        ({"monitors": {"news": {"topic": "sentiment", "sentiment": "b"}}}, "monitors.news: b is not one of"),
        ({"autoscalingEnabled": True, "autoscalingMinReplicas": 9}, "autoscalingMinReplicas: must not"),
        (
            {"autoscalingEnabled": True, "autoscalingMetrics": [CPU_USE], "resources": {"requests": {"cpu": None}}},
            "autoscalingMetrics: Utilization of cpu needs resources.requests.cpu",
        ),
        ({"kedaEnabled": True, "autoscalingEnabled": True}, "kedaEnabled and autoscalingEnabled: give one"),
        ({"kedaEnabled": True}, "kedaPrometheusAddress: needed with kedaEnabled"),
        (KEDA | {"kedaMinReplicas": 5}, "kedaMinReplicas: must not be more"),
        (KEDA | {"kedaMinReplicas": 0}, "kedaActivationQuery: needed with kedaMinReplicas 0"),
        ({"grpcRouteEnabled": True}, "grpcRouteParents: needed with grpcRouteEnabled"),
        (ROUTE | {"grpcRouteParents": 2 * ROUTE["grpcRouteParents"]}, "grpcRouteParents: needs another sectionName"),
        (ROUTE | {"grpcRouteWeight": 0}, "grpcRouteWeight: must be more than 0"),
        (ROUTE | {"grpcRouteCanaries": {"release-name-tuneserve": 1}}, "grpcRouteCanaries: must not name this"),
        ({"inferencePoolEnabled": True}, "inferencePoolPicker: needed with inferencePoolEnabled"),
        (POOL | {"tlsSecret": "web"}, "inferencePoolEnabled: needs tlsSecret to be empty"),
        (POOL | {"models": {"a": {"path": "/a"}, "b": {"path": "/b"}}}, "inferencePoolEnabled: needs exactly one"),
        (NODES | {"models": {"a": {"path": "/a"}, "b": {"path": "/b"}}}, "nodes: needs exactly one model"),
        (NODES | {"nodes": 3}, "nodes: 3 must divide tensor_parallel_size"),
        (NODES | {"models": {"a": {"path": "/a"}}}, "nodes: 2 must divide tensor_parallel_size"),
        (NODES | {"onEngineFailure": "restart"}, "nodes: needs onEngineFailure to be exit"),
        (NODES | {"processes": 2}, "nodes: needs processes to be 1"),
        (NODES | {"reloadModels": True}, "nodes: needs reloadModels to be false"),
        (NODES | {"networkPolicyEnabled": True}, "nodes: needs networkPolicyEnabled to be false"),
        (JOBS | {"modelsClaim": ""}, "finetuneConfig: needs modelsClaim"),
        ({"indexes": {"docs": INDEX}}, "indexes: needs indexesClaim"),
        (
            {"indexes": {"docs": INDEX | {"embedding": "b"}}, "indexesClaim": "a"},
            "indexes.docs: b is not one of models",
        ),
        (
            {"indexes": {"docs": INDEX | {"path": "/docs"}}, "indexesClaim": "a"},
            "indexes.docs.path: /docs is not below",
        ),
        (JOBS | {"finetuneConfig": {"output": "/tmp/a"}}, "finetuneConfig.output: must begin with /models/"),
        (JOBS | {"quantizeSource": "/srv/a"}, "quantizeSource: must begin with /models/"),
        (JOBS | {"quantizeOutput": ""}, "quantizeOutput: must begin with /models/"),
        (JOBS | {"quantizeOutput": "/models/../b"}, "quantizeOutput: must begin with /models/"),
        (JOBS | {"quantizeOutput": "/models/a/"}, "quantizeOutput: must not be quantizeSource"),
        (
            JOBS | {"retrainPolicy": RETRAIN | {"feedback": "/models/a.jsonl"}},
            "retrainPolicy.feedback: must begin with /feedback/",
        ),
        (JOBS | {"retrainPolicy": RETRAIN | {"output": "/tmp/a"}}, "retrainPolicy.output: must begin with /models/"),
        (JOBS | {"feedbackClaim": ""}, "retrainPolicy: needs feedbackClaim"),
        (JOBS | {"predictCheckpoint": "/b"}, "predictCheckpoint: must begin with /models/"),
        (JOBS | {"predictRows": ""}, "predictRows: needed with predictCheckpoint"),
        (JOBS | {"predictRows": "/tmp/rows.csv"}, "predictRows: must begin with /models/"),
        (JOBS | {"predictOutput": "/tmp/a"}, "predictOutput: must begin with /models/"),
        (JOBS | {"predictOutput": "/models/rows.csv"}, "predictOutput: must not be predictRows"),
        ({"modelsClaim": "a", "modelsRoot": "/srv"}, "modelsRoot: must be /models or below it"),
        (FETCH | {"modelsRoot": "/modelsB"}, "modelsRoot: must be /models or below it"),
        ({"prometheusRuleNegative": "(neg"}, r"prometheusRuleNegative: \(neg is not a regular expression"),
        ({"terminationGraceSeconds": 62}, "terminationGraceSeconds: must be at least 63"),
        ({"preStopSeconds": 0, "lingerSeconds": 0}, "preStopSeconds and lingerSeconds: must not both be 0"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(
    chart: helm_python.Chart, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(helm_python.HelmRenderError, match=message):
        chart.render(MINIMAL | values)


def known_values(schema: Any, definitions: dict[str, Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each value that the schema knows, at any depth, and its type."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix("#/definitions/")]
    if path:
        yield path, schema.get("type")
    children = {**schema.get("properties", {}), "some-name": schema.get("additionalProperties"), 0: schema.get("items")}
    for key, child in children.items():
        if isinstance(child, dict):
            yield from known_values(child, definitions, (*path, key))


def test_every_value_of_another_type_is_refused_by_name(chart: helm_python.Chart) -> None:
    found = list(known_values(chart.schema, chart.schema["definitions"]))
    assert len(found) > 200
    for path, kind in found:
        values: Any = "text" if kind == "object" else {"some": "object"}
        for key in reversed(path):
            values = [values] if key == 0 else {key: values}
        with pytest.raises(helm_python.HelmValuesError, match=re.escape("'/" + "/".join(map(str, path)) + "'")):
            chart.render(values)


def test_every_string_of_the_schema_is_bounded_and_every_value_is_known(chart: helm_python.Chart) -> None:
    def strings(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            if node.get("type") == "string":
                yield node
            for child in node.values():
                yield from strings(child)
        elif isinstance(node, list):
            for child in node:
                yield from strings(child)

    schema = chart.schema
    assert schema
    assert all(string.keys() & {"pattern", "enum", "const"} for string in strings(schema))
    assert set(schema["properties"]) - {"global"} == set(chart.values)


SELECTOR = {"matchLabels": {"app": "x"}}
# What only Kubernetes knows the shape of, by the key that holds it.
SAMPLES: dict[str, list[Any]] = {
    "affinity": [{}, {"podAffinity": {}}],
    "autoscalingMetrics": [[CPU_USE]],
    "kedaActivationQuery": ["", "sum(rate(calls_total[2m]))"],
    "engine": [{}, {"max_num_batched_tokens": 4096, "enable_prefix_caching": False, "compilation_config": {"mode": 0}}],
    "finetuneConfig": [{}, {"task": "generation", "output": "/models/chat"}],
    "global": [{}],
    "labelSelector": [SELECTOR],
    "modelsVolume": [{}, {"emptyDir": {}}, {"hostPath": {"path": "/srv/models"}}],
    "networkPolicyGrpcFrom": [[], [{"podSelector": SELECTOR}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]],
    "networkPolicyMetricsFrom": [[], [{"namespaceSelector": SELECTOR, "podSelector": {}}]],
    "retrainPolicy": [{}, {"feedback": "/feedback/a.jsonl", "output": "/models/loop"}],
    "valueFrom": [{"fieldRef": {"fieldPath": "metadata.name"}}],
}


def values_of(schema: dict[str, Any], definitions: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the schema allows.

    hypothesis-jsonschema 0.23.1 makes the leaves; its objects need internals that newer Hypothesis has changed.
    """
    if "$ref" in schema:
        return values_of(definitions[schema["$ref"].removeprefix("#/definitions/")], definitions)
    if schema.get("type") == "array":
        return st.lists(values_of(schema["items"], definitions), max_size=2)
    if schema.get("type") != "object":
        # To Python, the `$` of a pattern is also before a line break at the end.
        return from_schema(schema).filter(lambda value: not str(value).endswith("\n"))
    if "properties" not in schema:
        names = values_of({"type": "string", **schema["propertyNames"]}, definitions)
        return st.dictionaries(names, values_of(schema["additionalProperties"], definitions), max_size=4)
    values = {
        key: st.sampled_from(SAMPLES[key]) if key in SAMPLES else values_of(value, definitions)
        for key, value in schema["properties"].items()
    }
    required = {key: values.pop(key) for key in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=values)


def chart_values() -> st.SearchStrategy[dict[str, Any]]:
    """An example or models alone, and a few values that the schema allows: of more at a time, some never agree."""
    with helm_python.Chart.load(CHART) as loaded:
        schema = loaded.schema
    assert schema
    known = schema["properties"]
    drawn = {
        key: st.sampled_from(SAMPLES[key]) if key in SAMPLES else values_of(known[key], schema["definitions"])
        for key in known
    }
    examples = st.sampled_from([yaml.safe_load(path.read_text()) for path in VARIANTS])
    few = st.lists(st.sampled_from(sorted(drawn)), max_size=8, unique=True).flatmap(
        lambda keys: st.fixed_dictionaries({key: drawn[key] for key in keys})
    )
    alone = st.fixed_dictionaries({"models": drawn["models"].filter(bool)})
    return st.builds(operator.or_, st.one_of(alone, examples), few)


def test_values_the_schema_allows_render_or_are_refused_with_a_reason(chart: helm_python.Chart, tmp_path: Path) -> None:
    rendered = []

    @settings(
        max_examples=300,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(values=chart_values())
    def try_each(values: dict[str, Any]) -> None:
        try:
            manifests = render(chart, values)
        except helm_python.HelmRenderError as error:
            rendered.append(False)
            refused = re.search(r"execution error at \S+ (\w+)", str(error))
            if not refused or refused[1] not in chart.values:
                raise
            return
        rendered.append(True)
        assert read_server_config(manifests, tmp_path).models.keys() == values["models"].keys()

    try_each()
    assert sum(rendered) > len(rendered) / 2
