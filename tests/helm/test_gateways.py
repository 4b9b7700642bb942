"""What finds the pods and scales them: routes, pools, KEDA, HorizontalPodAutoscalers, and sets of several machines."""

import helm_python
import promql_parser
import pytest
import yaml

from tuneserve.server.metrics import Metrics

from .rendering import MINIMAL, render
from .test_chart import KEDA, NODES
from .test_jobs import parsed


def test_a_canary_gets_its_share_of_the_calls(chart: helm_python.Chart) -> None:
    values = MINIMAL | {
        "grpcRouteEnabled": True,
        "grpcRouteParents": [{"name": "gateway", "namespace": "gateways", "sectionName": "https"}],
        "grpcRouteHostnames": ["models.example.com"],
        "grpcRouteWeight": 90,
        "grpcRouteCanaries": {"next-tuneserve": 10},
        "grpcPort": 5001,
    }
    manifests, canary = render(chart, values), render(chart, MINIMAL | {"grpcPort": 5001}, "next")
    spec = manifests["grpcroute"]["spec"]
    assert spec["hostnames"] == ["models.example.com"]
    [rule] = spec["rules"]
    weights = {(backend["name"], backend["port"]): backend["weight"] for backend in rule["backendRefs"]}

    def service(release: dict) -> tuple[str, int]:
        return release["service"]["metadata"]["name"], release["service"]["spec"]["ports"][0]["port"]

    assert weights == {service(manifests): 90, service(canary): 10}
    assert "grpcroute" not in canary


def test_a_pool_has_the_pods_and_their_port(chart: helm_python.Chart) -> None:
    values = {"inferencePoolEnabled": True, "inferencePoolPicker": "picker-epp", "grpcPort": 5001}
    manifests = render(chart, MINIMAL | values)
    pool = manifests["inferencepool"]
    assert (pool["apiVersion"], pool["kind"]) == ("inference.networking.k8s.io/v1", "InferencePool")
    assert pool["spec"] == {
        "selector": manifests["deployment"]["spec"]["selector"],
        "targetPorts": [{"number": 5001}],
        "appProtocol": "kubernetes.io/h2c",
        "endpointPickerRef": {"name": "picker-epp", "port": {"number": 9002}, "failureMode": "FailOpen"},
    }


def test_keda_counts_what_waits_and_runs_in_this_release(chart: helm_python.Chart) -> None:
    values = {"kedaEnabled": True, "kedaPrometheusAddress": "http://prometheus:9090", "kedaRequestsPerPod": 16}
    spec = render(chart, MINIMAL | values)["scaledobject"]["spec"]
    assert spec["scaleTargetRef"]["name"] == "rel-tuneserve"
    [load] = spec["triggers"]
    assert load["metadata"]["threshold"] == "16"
    expression = promql_parser.parse(load["metadata"]["query"]).prettify()
    assert expression.count('namespace="ml"') == expression.count('job="rel-tuneserve-metrics"') == 2


def test_no_pod_is_left_until_somebody_calls(chart: helm_python.Chart) -> None:
    asked = 'sum(rate(envoy_cluster_upstream_rq_total{envoy_cluster_name=~".*tuned.*"}[2m]))'
    values = {"kedaEnabled": True, "kedaPrometheusAddress": "http://prometheus:9090", "kedaMinReplicas": 0}
    spec = render(chart, MINIMAL | values | {"kedaActivationQuery": asked})["scaledobject"]["spec"]
    assert spec["minReplicaCount"] == 0
    _, awake = spec["triggers"]
    assert awake["metadata"]["query"] == asked
    assert float(awake["metadata"]["activationThreshold"]) == 0


def test_an_autoscaler_counts_what_waits_and_what_runs(chart: helm_python.Chart) -> None:
    """Not CPU use, which one stream on a CPU drives to its limit, and calls that wait for a GPU do not."""
    autoscaler = render(chart, MINIMAL | {"autoscalingEnabled": True})["horizontalpodautoscaler"]
    metrics = [one["pods"]["metric"]["name"] for one in autoscaler["spec"]["metrics"]]
    assert metrics == ["tuneserve_requests_running", "tuneserve_requests_waiting"]
    assert set(metrics) <= {metric.name for metric in Metrics().registry.collect() if metric.type == "gauge"}


def test_machines_that_share_a_model_are_a_set_whose_leader_gets_the_calls(chart: helm_python.Chart) -> None:
    manifests = render(chart, NODES | {"replicaCount": 3})
    assert "deployment" not in manifests
    machines = manifests["leaderworkerset"]
    assert (machines["apiVersion"], machines["kind"]) == ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet")
    spec, group = machines["spec"], machines["spec"]["leaderWorkerTemplate"]
    assert spec.keys() == {"replicas", "rolloutStrategy", "leaderWorkerTemplate"}
    assert spec["rolloutStrategy"]["rollingUpdateConfiguration"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert (spec["replicas"], group["size"], group["restartPolicy"]) == (3, 2, "RecreateGroupOnPodRestart")
    leader, worker = group["leaderTemplate"], group["workerTemplate"]
    selector = manifests["service"]["spec"]["selector"].items()
    assert selector <= leader["metadata"]["labels"].items()
    assert not selector <= worker["metadata"]["labels"].items()
    [serving], [working] = leader["spec"]["containers"], worker["spec"]["containers"]
    assert not working.keys() & {"ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"}
    assert working["resources"] == serving["resources"]
    assert working["volumeMounts"] == serving["volumeMounts"]
    # As the set's controller fills it in.
    filled = {"$(LWS_LEADER_ADDRESS)": "leader.ml", "$(LWS_WORKER_INDEX)": "1"}
    asked = parsed([filled.get(word, word) for word in working["command"]])
    assert (str(asked["config"]), asked["leader"], asked["rank"]) == (serving["command"][-1], "leader.ml", 1)
    engine = yaml.safe_load(manifests["configmap"]["data"]["server.yaml"])["models"]["chat"]["engine"]
    assert engine == {"nnodes": 2, "tensor_parallel_size": 8, "pipeline_parallel_size": 2}


@pytest.mark.parametrize("scaled", [{"autoscalingEnabled": True}, KEDA])
@pytest.mark.parametrize(("values", "kind"), [(MINIMAL, "deployment"), (NODES, "leaderworkerset")])
def test_what_is_scaled_is_what_makes_the_pods(chart: helm_python.Chart, scaled: dict, values: dict, kind: str) -> None:
    manifests = render(chart, values | scaled)
    made = manifests[kind]
    target = manifests["scaledobject" if "kedaEnabled" in scaled else "horizontalpodautoscaler"]["spec"][
        "scaleTargetRef"
    ]
    assert target == {"apiVersion": made["apiVersion"], "kind": made["kind"], "name": made["metadata"]["name"]}
    assert "replicas" not in made["spec"]
