"""Jobs, and the pod of helm test: their commands are ones that tuneserve takes."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tuneserve import settings
from tuneserve.cli import cli
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.retrain.policy import RetrainConfig
from tuneserve.schema import json_schema
from tuneserve.server.config import FeedbackConfig, ModelConfig, ServerConfig

from ..server.conftest import served_by
from .rendering import CHART, MINIMAL, Manifests, render


def parsed(command: list[str]) -> dict[str, Any]:
    """The options of a command line, as tuneserve reads them."""
    program, name, *arguments = command
    assert program == "tuneserve"
    return cli.commands[name].make_context(name, arguments).params


def job(manifests: Manifests, name: str) -> dict[str, Any]:
    return manifests[f"job-{name}"]["spec"]["template"]["spec"]["containers"][0]


@pytest.fixture
def values() -> dict[str, Any]:
    return yaml.safe_load((CHART / "ci" / "jobs-values.yaml").read_text())


# What the chart's schema leaves to docs/schemas, and to the Job.
LEFT_OUT = {"$schema", "$defs", "title", "description", "default", "required", "oneOf"}


def in_chart(node: Any, definitions: dict[str, Any]) -> Any:
    """A part of a file's JSON Schema as the chart has it, with absolute paths."""
    if isinstance(node, list):
        return [in_chart(one, definitions) for one in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return in_chart(definitions[node["$ref"].removeprefix("#/$defs/")], definitions)
    if node.get("format") == "path":
        return {"type": "string", "pattern": "^/"}
    return {key: in_chart(value, definitions) for key, value in node.items() if key not in LEFT_OUT}


@pytest.mark.parametrize(("definition", "file"), [("training", "finetune"), ("policy", "retrain")])
def test_the_chart_knows_every_setting_of_a_job(chart: helm_python.Chart, definition: str, file: str) -> None:
    known, schema = chart.schema["definitions"][definition], json_schema(file)
    expected = in_chart(schema, schema.get("$defs", {}))
    if file == "retrain":
        # The file takes any; the command checks them.
        expected["properties"]["finetune"] = {"$ref": "#/definitions/training"}
    assert known == expected | {"description": known["description"]}


def test_finetune_reads_its_settings(chart: helm_python.Chart, values: dict[str, Any], tmp_path: Path) -> None:
    manifests = render(chart, values)
    container = job(manifests, "finetune")
    assert parsed(container["command"])["resume"]
    [config] = manifests["job-finetune"]["spec"]["template"]["spec"]["volumes"][-1:]
    assert config["configMap"]["name"] == manifests["configmap-finetune"]["metadata"]["name"]
    [mounted] = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "config"]
    assert container["command"][2] == f"{mounted}/train.yaml"
    document = yaml.safe_load(manifests["configmap-finetune"]["data"]["train.yaml"])
    config = settings.build(FinetuneConfig, document, "train.yaml", tmp_path)
    assert (str(config.output), config.learning_rate) == ("/models/reviews", 2e-5)


def test_retrain_reads_its_policy_and_the_feedback(
    chart: helm_python.Chart, values: dict[str, Any], tmp_path: Path
) -> None:
    manifests = render(chart, values)
    spec = manifests["cronjob-retrain"]["spec"]
    assert (spec["schedule"], spec["concurrencyPolicy"]) == ("0 3 * * *", "Forbid")
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert str(parsed(container["command"])["policy"]) == "/etc/tuneserve/policy.yaml"
    document = yaml.safe_load(manifests["configmap-retrain"]["data"]["policy.yaml"])
    policy = settings.build(RetrainConfig, document, "policy.yaml", tmp_path)
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert str(policy.feedback).startswith(mounts["feedback"]["mountPath"])
    assert mounts["feedback"]["readOnly"] is True
    assert "readOnly" not in mounts["models"]
    [key] = [one for one in container["env"] if one["name"] == "TUNESERVE_KEY"]
    assert key["valueFrom"]["secretKeyRef"] == {"name": "admin-key", "key": "key"}
    # The server writes what this reads.
    server = manifests["deployment"]["spec"]["template"]["spec"]
    [kept] = [mount for mount in server["containers"][0]["volumeMounts"] if mount["name"] == "feedback"]
    assert kept == {"name": "feedback", "mountPath": "/feedback"}
    claims = [volume for volume in (*server["volumes"], *pod["volumes"]) if volume["name"] == "feedback"]
    assert claims == [{"name": "feedback", "persistentVolumeClaim": {"claimName": "feedback"}}] * 2
    config = yaml.safe_load(manifests["configmap"]["data"]["server.yaml"])["feedback"]
    found = settings.build(FeedbackConfig, config, "feedback", tmp_path)
    assert found == FeedbackConfig(path=Path("/feedback"), redact=("email", "phone"))


def test_a_policy_that_removes_rows_can_write_the_feedback(chart: helm_python.Chart, values: dict[str, Any]) -> None:
    values["retrainPolicy"]["remove_learned"] = True
    pod = render(chart, values)["cronjob-retrain"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [kept] = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "feedback"]
    assert kept["readOnly"] is False


def test_quantize(chart: helm_python.Chart, values: dict[str, Any]) -> None:
    container = job(render(chart, values), "quantize")
    assert container["image"] == "registry.example.com/ml/tuneserve-train:0.1.0"
    asked = parsed(container["command"])
    assert (asked["scheme"], asked["max_drop"], str(asked["output"])) == ("w8a8", 0.01, "/models/reviews-w8a8")


def test_each_shard_answers_its_rows(chart: helm_python.Chart, values: dict[str, Any]) -> None:
    manifests = render(chart, values)
    spec = manifests["job-predict"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 2)
    container = job(manifests, "predict")
    [index] = [one["valueFrom"]["fieldRef"]["fieldPath"] for one in container["env"] if one["name"] == "SHARD"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    # As the kubelet fills it in.
    asked = [parsed([word.replace("$(SHARD)", str(i)) for word in container["command"]]) for i in range(4)]
    assert [one["shard"] for one in asked] == ["0/4", "1/4", "2/4", "3/4"]
    assert len({str(one["output"]) for one in asked}) == 4
    assert all(one["resume"] for one in asked)


def test_jobs_write_the_claim_and_get_no_calls(chart: helm_python.Chart, values: dict[str, Any]) -> None:
    manifests = render(chart, values)
    for name in ("finetune", "quantize", "predict"):
        [claim] = [mount for mount in job(manifests, name)["volumeMounts"] if mount["name"] == "models"]
        assert not claim.get("readOnly")
        labels = manifests[f"job-{name}"]["spec"]["template"]["metadata"]["labels"]
        assert not manifests["service"]["spec"]["selector"].items() <= labels.items()


def test_another_job_has_another_name(chart: helm_python.Chart, values: dict[str, Any]) -> None:
    def names(more: dict[str, Any], release: str = "rel") -> dict[str, str]:
        manifests = render(chart, values | more, release)
        return {kind: manifests[f"job-{kind}"]["metadata"]["name"] for kind in ("finetune", "quantize", "predict")}

    before = names({})
    # With room for the index of a shard.
    assert all(len(name) <= 58 for name in names({}, "x" * 53).values())
    assert names({"replicaCount": 3}) == before
    assert names({"quantizeMaxDrop": 0.02}) == before | {"quantize": names({"quantizeMaxDrop": 0.02})["quantize"]}
    changed = names({"predictShards": 8, "finetuneConfig": values["finetuneConfig"] | {"epochs": 5}})
    assert {kind for kind in before if before[kind] != changed[kind]} == {"finetune", "predict"}


def test_helm_test_calls_each_model_through_the_service(chart: helm_python.Chart) -> None:
    models = {"models": {"a": {"path": "/models/a"}, "b": {"path": "/models/b"}}}
    values = models | {"tlsSecret": "web", "tenantsSecret": "keys", "testKeySecret": "test-key", "grpcPort": 5001}
    manifests = render(chart, values)
    pod = manifests["inference"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    asked = [parsed([*one["command"], *one["args"][:-1]]) for one in pod["spec"]["containers"]]
    assert [one["model"] for one in asked] == ["a", "b"]
    service = manifests["service"]
    target = f"{service['metadata']['name']}.ml.svc:{service['spec']['ports'][0]['port']}"
    assert {one["target"] for one in asked} == {target}
    # Who reads the test's files does not get the server's key.
    assert pod["spec"]["volumes"][1]["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    [key] = [one for one in pod["spec"]["containers"][0]["env"] if one["name"] == "TUNESERVE_KEY"]
    assert key["valueFrom"]["secretKeyRef"] == {"name": "test-key", "key": "key"}


async def test_helm_test_passes_where_a_model_answers(chart: helm_python.Chart, make_bert: Callable[..., Path]) -> None:
    path = make_bert("ForSequenceClassification", ["neg", "pos"])
    everywhere = dict.fromkeys(("listen", "metrics_listen", "admin_listen"), "127.0.0.1:0")
    manifests = render(chart, {"models": {"there": {"path": "/models/a"}, "missing": {"path": "/models/b"}}})
    commands = [[*one["command"], *one["args"]] for one in manifests["inference"]["spec"]["containers"]]
    async with served_by(ServerConfig(models={"there": ModelConfig(path=path)}, **everywhere)) as server:
        # A slow one passes, too.
        server.engines["there"].delay = 1.0
        statuses = []
        for program, *arguments in commands:
            assert program == "tuneserve"
            here = [f"--target={server.app.address}" if "--target" in one else one for one in arguments]
            process = await asyncio.create_subprocess_exec(sys.executable, "-P", "-m", "tuneserve.cli", *here)
            statuses.append(await process.wait() == 0)
    assert statuses == [False, True]


@pytest.mark.parametrize("secrets", [{"tenantsSecret": "keys"}, {"tlsSecret": "web", "clientCaSecret": "web"}])
def test_there_is_no_test_that_could_not_call(chart: helm_python.Chart, secrets: dict[str, str]) -> None:
    assert "inference" not in render(chart, MINIMAL | secrets)
    assert "helm test" not in chart.render(MINIMAL | secrets)["tuneserve/templates/NOTES.txt"]
