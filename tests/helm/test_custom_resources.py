"""Objects of other projects: what their types refuse."""

from copy import deepcopy
from typing import Any

import helm_python
import pytest
import yaml

from .custom_resources import KINDS, Json, validate
from .rendering import CHART, render
from .test_chart import KEDA, ROUTE

ON = KEDA | ROUTE | {"serviceMonitorEnabled": True, "prometheusRuleEnabled": True}


@pytest.fixture(scope="module")
def objects(chart: helm_python.Chart) -> dict[str, Json]:
    """One of each kind."""
    rendered = render(chart, {"models": {"a": {"path": "/a"}}} | ON).values()
    kserve = yaml.safe_load_all((CHART.parent / "integrations" / "kserve.yaml").read_text())
    return {one["kind"]: one for one in (*rendered, *kserve) if one["kind"] in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("changed", "named"), [({"paused": True}, "paused"), ({"spec": 1}, r"\$.spec: 1")])
def test_unknown_fields_and_other_types_are_refused(
    objects: dict[str, Json], kind: str, changed: dict[str, Any], named: str
) -> None:
    with pytest.raises(AssertionError, match=named):
        validate(deepcopy(objects[kind]) | changed)


def test_of_what_a_list_holds_too(objects: dict[str, Json]) -> None:
    route = deepcopy(objects["GRPCRoute"])
    route["spec"]["rules"][0]["backendRefs"][0]["wieght"] = 1
    with pytest.raises(AssertionError, match=r"rules\[0\]\.backendRefs\[0\].*'wieght'"):
        validate(route)
