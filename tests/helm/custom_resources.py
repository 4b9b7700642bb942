"""Checks objects of other projects by these projects' own types, strictly: unknown fields are refused.

The types are fetched by version and hash: those that `types/` lists from npm, KServe's from its Python client. They
have none of an API server's patterns, limits and CEL rules.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

from .. import node
from ..kept import keep

Json = dict[str, Any]

_TYPES = Path(__file__).with_name("types")
_SOURCES = [path.read_bytes() for path in sorted(_TYPES.iterdir())]
KINDS = {
    "GRPCRoute": "IGRPCRoute",
    "PrometheusRule": "IPrometheusRule",
    "ScaledObject": "IScaledObject",
    "ServiceMonitor": "IServiceMonitor",
    "ClusterServingRuntime": "V1alpha1ClusterServingRuntime",
    "InferenceService": "V1beta1InferenceService",
}
_PLAIN = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


def validate(manifest: Json) -> None:
    """Raises AssertionError naming the field."""
    wrong = [f"{error.json_path}: {error.message}" for error in _validator(manifest["kind"]).iter_errors(manifest)]
    assert not wrong, wrong


@cache
def _validator(kind: str) -> Draft7Validator:
    definitions = json.loads((keep("types", _SOURCES, fetch) / "schemas.json").read_text())
    return Draft7Validator({"$ref": f"#/definitions/{KINDS[kind]}", "definitions": definitions})


def fetch(directory: Path) -> None:
    """Writes schemas.json, of all types."""
    shutil.copytree(_TYPES, directory, dirs_exist_ok=True)
    node.install(_TYPES, directory)
    generator = "node_modules/ts-json-schema-generator/bin/ts-json-schema-generator.js"
    command = [*node.commands()[0], generator, "--path=types.ts", "--tsconfig=tsconfig.json", "--out=npm.json"]
    subprocess.run(command, cwd=directory, check=True, timeout=180)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    subprocess.run([*pip, "--target=pypi", "--requirement=kserve.txt"], cwd=directory, check=True, timeout=180)
    types = json.loads((directory / "npm.json").read_text())["definitions"]
    types |= dict(_models(directory / "pypi" / "kserve" / "models"))
    (directory / "schemas.json").write_text(json.dumps(types))
    shutil.rmtree(directory / "node_modules")
    shutil.rmtree(directory / "pypi")


def _models(folder: Path) -> Iterator[tuple[str, Json]]:
    """The schema of each class of a client that OpenAPI Generator made, by the tables in its source."""
    sources = [ast.parse(path.read_text()).body for path in folder.glob("v1*.py")]
    models = {one.name: one.body for body in sources for one in body if isinstance(one, ast.ClassDef)}

    def schema(kind: str) -> Json:
        if array := re.fullmatch(r"list\[(.*)\]", kind):
            return {"type": "array", "items": schema(array[1])}
        if kind in models:
            return {"$ref": f"#/definitions/{kind}"}
        # Kubernetes' own are not in the client.
        return {"type": _PLAIN[kind]} if kind in _PLAIN else {}

    for name, body in models.items():
        tables = {ast.unparse(one.targets[0]): one.value for one in body if isinstance(one, ast.Assign)}
        kinds, names = (ast.literal_eval(tables[table]) for table in ("openapi_types", "attribute_map"))
        fields = {names[field]: schema(kind) for field, kind in kinds.items()}
        yield name, {"type": "object", "additionalProperties": False, "properties": fields}
