"""Objects of other projects: what their definitions refuse."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import helm_python
import pytest
import yaml

from .custom_resources import KINDS, Json, compiled, definition, validate
from .rendering import CHART, MINIMAL, render
from .test_chart import KEDA, NODES, POOL, ROUTE

ON = MINIMAL | KEDA | ROUTE | POOL | {"serviceMonitorEnabled": True, "prometheusRuleEnabled": True}


@pytest.fixture(scope="module")
def objects(chart: helm_python.Chart) -> dict[str, Json]:
    """One of each kind."""
    rendered = (*render(chart, ON).values(), *render(chart, NODES).values())
    kserve = yaml.safe_load_all((CHART.parent / "integrations" / "kserve.yaml").read_text())
    return {one["kind"]: one for one in (*rendered, *kserve) if one["kind"] in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("changed", "named"), [({"paused": True}, "paused"), ({"spec": 1}, r"\$.spec: 1")])
def test_unknown_fields_and_other_types_are_refused(
    objects: dict[str, Json], kind: str, changed: dict[str, Any], named: str
) -> None:
    with pytest.raises(AssertionError, match=named):
        validate(deepcopy(objects[kind]) | changed)


def backend(spec: Json) -> Json:
    return spec["rules"][0]["backendRefs"][0]


@pytest.mark.parametrize(
    ("kind", "spoil", "named"),
    [
        # An unknown field deep inside, a limit, a pattern.
        ("GRPCRoute", lambda spec: backend(spec).update(wieght=1), r"rules\[0\]\.backendRefs\[0\].*'wieght'"),
        (
            "GRPCRoute",
            lambda spec: backend(spec).update(weight=1000001),
            r"weight: 1000001 is greater than",
        ),
        ("GRPCRoute", lambda spec: spec.update(hostnames=["A"]), r"hostnames\[0\]: 'A' does not match"),
        ("LeaderWorkerSet", lambda spec: spec["leaderWorkerTemplate"].update(size="2"), "size: '2' is not"),
        ("InferencePool", lambda spec: spec.update(appProtocol="grpc"), "appProtocol: 'grpc' is not one of"),
        # Rules; of the first, defaults are part.
        ("GRPCRoute", lambda spec: backend(spec).pop("port"), r"backendRefs\[0\]: Must have port"),
        ("GRPCRoute", lambda spec: spec["parentRefs"].append(spec["parentRefs"][0]), "parentRefs: sectionName must be"),
        (
            "GRPCRoute",
            lambda spec: spec["rules"][0].update(matches=[{"method": {"service": "a b"}}]),
            r"matches\[0\]\.method: service must only contain",
        ),
        ("InferencePool", lambda spec: spec["endpointPickerRef"].pop("port"), "endpointPickerRef: port is required"),
    ],
)
def test_what_an_api_server_would_refuse(
    objects: dict[str, Json], kind: str, spoil: Callable[[Json], object], named: str
) -> None:
    broken = deepcopy(objects[kind])
    spoil(broken["spec"])
    with pytest.raises(AssertionError, match=named):
        validate(broken)


def test_gateways_with_two_listeners_are_not_one_parent_twice(objects: dict[str, Json]) -> None:
    """The rules tell parents apart by their namespace, whose name is a word of CEL."""
    route = deepcopy(objects["GRPCRoute"])
    [parent] = route["spec"]["parentRefs"]
    route["spec"]["parentRefs"] = [parent | {"namespace": name} for name in ("a", "b")]
    validate(route)


def test_every_rule_can_be_followed() -> None:
    def rules(schema: Any) -> Iterator[str]:
        if isinstance(schema, dict):
            yield from (one["rule"] for one in schema.get("x-kubernetes-validations", ()))
            for child in schema.values():
                yield from rules(child)
        elif isinstance(schema, list):
            for child in schema:
                yield from rules(child)

    found = {kind: [*rules(definition(kind))] for kind in KINDS}
    assert found["GRPCRoute"]
    assert found["InferencePool"]
    for rule in (rule for each in found.values() for rule in each):
        assert compiled(rule)
