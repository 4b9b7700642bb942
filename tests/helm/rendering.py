"""The chart through the real Helm engine, in process; what it renders is checked against Kubernetes' own schemas, and
against the definitions of the projects that other objects belong to.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

from . import custom_resources

CHART = Path(__file__).parents[2] / "helm"
OLDEST, NEWEST = "1.25", kubernetes_validate.latest_version()
MINIMAL = {"models": {"sentiment": {"path": "/models/sentiment"}}}

# For each manifest it would read a megabyte of definitions again.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)

Manifests = dict[str, dict[str, Any]]


def render(chart: helm_python.Chart, values: dict[str, Any], name: str = "rel") -> Manifests:
    """Returns the manifests by template name, each valid for the oldest and the newest Kubernetes."""
    rendered = chart.render(values, name=name, namespace="ml")
    manifests = {}
    for path, text in rendered.items():
        if path.endswith(".yaml") and (manifest := yaml.safe_load(text)):
            manifests[Path(path).stem] = manifest
            check(manifest)
    return manifests


def check(manifest: dict[str, Any], versions: Iterable[str] = (OLDEST, NEWEST)) -> None:
    """Raises an error unless the manifest is valid, for these versions of Kubernetes."""
    for template in templates(manifest):
        _check_names(template["spec"])
    if manifest["kind"] in custom_resources.KINDS:
        custom_resources.validate(manifest)
        # What their definitions leave to Kubernetes.
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}
    for version in versions:
        kubernetes_validate.validate(manifest, version, strict=True)


def _check_names(pod: dict[str, Any]) -> None:
    """An API server also refuses names that are given twice, and mounts at one path or of a missing volume."""
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    volumes = [one["name"] for one in pod["volumes"]]
    mounted = [[one["mountPath"] for one in each["volumeMounts"]] for each in containers]
    for names in (volumes, [one["name"] for one in containers], *mounted):
        assert len(names) == len(set(names)), names
    assert {one["name"] for each in containers for one in each["volumeMounts"]} == set(volumes)


def templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods that it makes, or is."""
    group = manifest.get("spec", {}).get("leaderWorkerTemplate", {})
    found = [
        group.get("leaderTemplate"),
        group.get("workerTemplate"),
        manifest.get("spec", {}).get("template"),
        manifest.get("spec", {}).get("jobTemplate", {}).get("spec", {}).get("template"),
        manifest,
    ]
    return [one for one in found if one and "containers" in one.get("spec", {})]


def container(manifests: Manifests) -> dict[str, Any]:
    """The server's."""
    template, *_ = templates(manifests.get("deployment") or manifests["leaderworkerset"])
    return template["spec"]["containers"][0]
