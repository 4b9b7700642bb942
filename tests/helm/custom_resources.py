"""Checks objects of other projects as an API server does that refuses unknown fields: schema, defaults, CEL rules.

crds/README.md says where the schemas are from.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import celpy
from celpy.adapter import json_to_cel
from jsonschema import Draft202012Validator

Json = dict[str, Any]

_FILES = Path(__file__).with_name("crds").glob("*.json")
_CRDS: dict[str, Json] = {crd["kind"]: crd for crd in (json.loads(path.read_text()) for path in _FILES)}
KINDS = frozenset(_CRDS)


def validate(manifest: Json) -> None:
    """Raises AssertionError naming the field."""
    crd = _CRDS[manifest["kind"]]
    assert manifest["apiVersion"] == crd["apiVersion"]
    wrong = [f"{error.json_path}: {error.message}" for error in _validator(manifest["kind"]).iter_errors(manifest)]
    assert not wrong, wrong
    broken = [f"{path}: {rule}" for path, rule in _broken("$", manifest, crd["schema"])]
    assert not broken, broken


@cache
def _validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(_strict(_CRDS[kind]["schema"]))


def _strict(schema: Any) -> Any:
    """The schema, which also refuses fields that it does not know."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: {name: _strict(one) for name, one in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
    }
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def _broken(path: str, value: Any, schema: Json) -> Iterator[tuple[str, str]]:
    """Each CEL rule that does not hold, with its place. Fills in defaults, which the rules read."""
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from _broken(f"{path}[{index}]", one, schema.get("items", {}))
    elif isinstance(value, dict):
        for name, field in schema.get("properties", {}).items():
            if "default" in field:
                value.setdefault(name, field["default"])
            if name in value:
                yield from _broken(f"{path}.{name}", value[name], field)
    for rule in schema.get("x-kubernetes-validations", ()):
        if not _holds(rule["rule"], value):
            yield path, rule["rule"]


def _holds(rule: str, value: Any) -> bool:
    environment = celpy.Environment()
    program = environment.program(environment.compile(rule))
    return bool(program.evaluate({"self": json_to_cel(_escaped(value))}))


def _escaped(value: Any) -> Any:
    """CEL's own words as Kubernetes writes them in rules."""
    if isinstance(value, list):
        return [_escaped(one) for one in value]
    if isinstance(value, dict):
        return {"__namespace__" if name == "namespace" else name: _escaped(one) for name, one in value.items()}
    return value
