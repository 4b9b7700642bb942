"""What holds in every example of the chart: versions of images, resources, selectors, commands, probes and ports."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from .rendering import Manifests, container, render, templates
from .test_chart import PROBES, VARIANTS
from .test_jobs import parsed


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda path: path.stem)
def manifests(request: pytest.FixtureRequest, chart: helm_python.Chart) -> Manifests:
    path: Path = request.param
    return render(chart, yaml.safe_load(path.read_text()))


def containers(manifests: Manifests) -> Iterator[dict[str, Any]]:
    """Of all pods, those of Jobs and of helm test too."""
    for template in (one for manifest in manifests.values() for one in templates(manifest)):
        yield from (*template["spec"].get("initContainers", ()), *template["spec"]["containers"])


def mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1 << 10}[quantity[-2:]]


def test_images_have_a_version(manifests: Manifests) -> None:
    images = {one["image"] for one in containers(manifests)}
    assert images
    for image in images:
        assert re.search(r":[^:/]*\d[^:/]*$|@sha256:[0-9a-f]{64}$", image), image


def test_containers_say_what_they_need(manifests: Manifests) -> None:
    for one in containers(manifests):
        limits, requests = one["resources"]["limits"], one["resources"]["requests"]
        # Not of CPU: a limit would slow an engine down beside idle cores.
        assert mebibytes(requests["memory"]) <= mebibytes(limits["memory"])
        assert requests["cpu"]


def test_disks_of_pods_are_limited_and_those_in_memory_fit_in_it(manifests: Manifests) -> None:
    for spec in (one["spec"] for manifest in manifests.values() for one in templates(manifest)):
        memory = min(mebibytes(one["resources"]["limits"]["memory"]) for one in spec["containers"])
        for disk in (volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume):
            size = mebibytes(disk["sizeLimit"])
            assert disk.get("medium") != "Memory" or size < memory


def test_selectors_find_the_servers_pods_alone(manifests: Manifests) -> None:
    """No Job, no pod of helm test and no further machine of a server gets its calls."""
    server = templates(manifests.get("deployment") or manifests["leaderworkerset"])[0]
    others = [one for manifest in manifests.values() for one in templates(manifest) if one != server]
    kinds = ("Deployment", "InferencePool", "NetworkPolicy", "PodDisruptionBudget", "Service")
    selecting = [one["spec"] for one in manifests.values() if one["kind"] in kinds]
    assert len(selecting) >= 4
    for spec in selecting:
        selector = spec.get("selector") or spec["podSelector"]
        labels = selector.get("matchLabels", selector).items()
        assert labels
        assert labels <= server["metadata"]["labels"].items()
        assert not any(labels <= one["metadata"]["labels"].items() for one in others)
    if monitor := manifests.get("servicemonitor"):
        labels = monitor["spec"]["selector"]["matchLabels"].items()
        assert [key for key, one in manifests.items() if labels <= one["metadata"]["labels"].items()] == [
            "service-metrics"
        ]


def test_commands_are_ones_that_tuneserve_takes(manifests: Manifests) -> None:
    for one in containers(manifests):
        # As the kubelet fills it in.
        parsed([re.sub(r"\$\(\w+\)", "1", word) for word in (*one["command"], *one.get("args", ()))])


def test_a_pod_loses_its_calls_before_it_is_restarted(manifests: Manifests) -> None:
    ready, alive = (container(manifests)[f"{name}Probe"] for name in ("readiness", "liveness"))
    assert ready["grpc"] != alive["grpc"]
    assert ready["periodSeconds"] * ready["failureThreshold"] < alive["periodSeconds"] * alive["failureThreshold"]


def test_ports_line_up(manifests: Manifests) -> None:
    server, config = container(manifests), yaml.safe_load(manifests["configmap"]["data"]["server.yaml"])
    ports = {one["name"]: one["containerPort"] for one in server["ports"]}
    listening = {"grpc": "listen", "metrics": "metrics_listen", "health": "health_listen"}
    assert ports == {name: int(config[key].rpartition(":")[2]) for name, key in listening.items()}
    assert {server[probe]["grpc"]["port"] for probe in PROBES} == {ports["health"]}
    services = [one["spec"]["ports"] for one in manifests.values() if one["kind"] == "Service"]
    assert len(services) == 3
    for port in (port for each in services for port in each):
        assert port["port"] == ports[port["targetPort"]]

    def listed(name: str, key: str) -> list[dict[str, Any]]:
        return manifests.get(name, {}).get("spec", {}).get(key, [])

    # By the name of a Service's port, and of a container's.
    assert {one["port"] for one in listed("servicemonitor", "endpoints")} <= {"metrics"}
    assert {port["port"] for rule in listed("networkpolicy", "ingress") for port in rule["ports"]} <= ports.keys()
    assert {one["number"] for one in listed("inferencepool", "targetPorts")} <= {ports["grpc"]}
    backends = [backend for rule in listed("grpcroute", "rules") for backend in rule["backendRefs"]]
    assert {backend["port"] for backend in backends} <= {ports["grpc"]}
