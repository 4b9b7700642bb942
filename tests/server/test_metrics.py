"""The page of metrics as a whole: valid, named by the rules, and true of several versions of one model."""

import re
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse

from tuneserve.server.metrics import Metrics
from tuneserve.v1 import checkpoint_pb2

MANIFEST = checkpoint_pb2.Checkpoint(task=checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION, quantization="w8a8")


def engine(running: int) -> CollectorRegistry:
    """What vLLM's own metrics look like: the model's name, and nothing of its version."""
    registry = CollectorRegistry()
    labels = {"model_name": "reviews", "engine": "0"}
    Gauge("vllm:num_requests_running", "Running.", labels, registry=registry).labels(**labels).set(running)
    Counter("vllm:prompt_tokens", "Tokens.", labels, registry=registry).labels(**labels).inc(7)
    Histogram("vllm:e2e_request_latency_seconds", "Latency.", labels, registry=registry).labels(**labels).observe(1)
    return registry


@pytest.fixture
def metrics() -> Metrics:
    """One with a sample of everything, and two versions of a model."""
    metrics = Metrics()
    for value in vars(metrics).values():
        if hasattr(value, "_labelnames"):
            labels = [f"{name}-value" for name in value._labelnames]
            child = value.labels(*labels) if labels else value
            (child.observe if isinstance(value, Histogram) else child.inc)(1)
    metrics.loaded("reviews", "aaa", MANIFEST, engine(1), 12.5)
    metrics.loaded("reviews", "bbb", MANIFEST, engine(2), 3.5)
    return metrics


def samples(metrics: Metrics, name: str) -> dict[str, float]:
    """Values by version."""
    page = generate_latest(metrics.registry).decode()
    found = [sample for family in parse(page) for sample in family.samples if sample.name == name]
    return {sample.labels["version"]: sample.value for sample in found if "version-value" not in sample.labels.values()}


def test_the_page_is_valid_and_says_nothing_twice(metrics):
    page = generate_latest(metrics.registry).decode()
    series = [line.rsplit(" ", 1)[0] for line in page.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series)) > 100
    described = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(described) == len(set(described))
    families = {family.name: family for family in parse(page)}
    assert {"grpc_server_handled", "tuneserve_queue_wait_seconds", "vllm:num_requests_running"} <= families.keys()


def test_prometheus_gets_the_engines_own_names(metrics):
    accept = (
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5"
    )
    environ = {"HTTP_ACCEPT": accept, "PATH_INFO": "/metrics", "REQUEST_METHOD": "GET", "QUERY_STRING": ""}
    answered = []
    body = b"".join(metrics.page(environ, lambda status, headers: answered.append((status, dict(headers)))))
    [(status, headers)] = answered
    assert status == "200 OK"
    assert headers["Content-Type"].startswith("text/plain")
    assert body == generate_latest(metrics.registry)
    assert b'vllm:num_requests_running{engine="0",model_name="reviews",version="aaa"} 1.0' in body
    assert b"vllm_" not in body


def test_names_follow_the_rules(metrics):
    names = set()
    for family in metrics.registry.collect():
        if family.name.startswith("vllm:"):
            continue
        names.add(family.name)
        assert re.fullmatch(r"(grpc_server|tuneserve)(_[a-z]+)+", family.name)
        assert family.documentation.endswith(".")
        assert not re.search(
            r"_(total|count|sum|bucket|info|created|ms|millis\w*|minutes|kb|mb|kib|mib)$", family.name
        ) or (family.name == "tuneserve_model_info")
        assert (family.name + "_total" in {sample.name for sample in family.samples}) == (family.type == "counter")
        for sample in family.samples:
            assert all(re.fullmatch(r"[a-z_]+", label) and label != family.type for label in sample.labels)
    # Dashboards use these.
    assert names >= {
        "grpc_server_started",
        "grpc_server_handled",
        "grpc_server_handling_seconds",
        "tuneserve_queue_depth",
        "tuneserve_requests_waiting",
        "tuneserve_requests_running",
        "tuneserve_tokens_waiting",
        "tuneserve_queue_wait_seconds",
        "tuneserve_admission_rejections",
        "tuneserve_time_to_first_token_seconds",
        "tuneserve_inter_token_seconds",
        "tuneserve_prompt_tokens",
        "tuneserve_completion_tokens",
        "tuneserve_texts_classified",
        "tuneserve_predictions",
        "tuneserve_prediction_confidence",
        "tuneserve_model_info",
        "tuneserve_model_load_seconds",
        "tuneserve_engine_up",
        "tuneserve_engine_restarts",
        "tuneserve_shadow",
        "tuneserve_tenant_calls",
        "tuneserve_tenant_tokens",
    }


def test_two_versions_are_told_apart(metrics):
    assert samples(metrics, "vllm:num_requests_running") == {"aaa": 1, "bbb": 2}
    assert samples(metrics, "vllm:prompt_tokens_total") == {"aaa": 7, "bbb": 7}
    assert samples(metrics, "tuneserve_engine_up") == {"aaa": 1, "bbb": 1}
    assert samples(metrics, "tuneserve_model_load_seconds") == {"aaa": 12.5, "bbb": 3.5}
    assert samples(metrics, "tuneserve_model_info") == {"aaa": 1, "bbb": 1}


@pytest.mark.parametrize(
    ("task", "labels", "counted"),
    [
        (checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION, ["neg", "pos"], ["neg", "pos"]),
        (checkpoint_pb2.TASK_TOKEN_CLASSIFICATION, ["O", "B-PER", "I-PER", "LOC"], ["PER", "LOC"]),
        (checkpoint_pb2.TASK_GENERATION, [], []),
    ],
)
def test_every_label_is_counted_from_zero_on(task, labels, counted):
    metrics = Metrics()
    manifest = checkpoint_pb2.Checkpoint(task=task, labels=labels)
    metrics.loaded("reviews", "aaa", manifest, CollectorRegistry(), 1)
    page = generate_latest(metrics.registry).decode()
    found = re.findall(r'tuneserve_predictions_total\{label="(.+)",model="reviews"\} 0.0', page)
    assert found == counted


def test_rates_include_the_first_event():
    metrics = Metrics()
    metrics.loaded(
        "chat", "aaa", checkpoint_pb2.Checkpoint(task=checkpoint_pb2.TASK_GENERATION), CollectorRegistry(), 1
    )
    page = generate_latest(metrics.registry).decode()
    for sample in (
        'calls_refused_total{grpc_code="RESOURCE_EXHAUSTED"}',
        'engine_restarts_total{model="chat"}',
        'answers_unparsed_total{model="chat"}',
    ):
        assert f"tuneserve_{sample} 0.0" in page


def test_predictions_can_be_compared_with_the_training_data():
    metrics = Metrics()
    manifest = checkpoint_pb2.Checkpoint(
        task=checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION,
        labels=["neg", "pos"],
        label_distribution={"neg": 0.25, "pos": 0.75},
    )
    metrics.loaded("reviews", "aaa", manifest, CollectorRegistry(), 1)
    metrics.loaded("reviews", "bbb", manifest, CollectorRegistry(), 1)
    page = generate_latest(metrics.registry).decode()
    assert 'tuneserve_training_label_share{label="neg",model="reviews",version="aaa"} 0.25' in page
    metrics.forget("reviews", "aaa")
    found = re.findall(r"tuneserve_training_label_share\{.*\}.*", generate_latest(metrics.registry).decode())
    assert len(found) == 2
    assert all('version="bbb"' in line for line in found)


def test_the_queues_of_a_model_s_versions_are_added_up(metrics):
    metrics.queues = lambda: [
        ("reviews", SimpleNamespace(waiting_sequences=3, waiting_tokens=40, running=2)),
        ("reviews", SimpleNamespace(waiting_sequences=1, waiting_tokens=5, running=0)),
        ("chat", SimpleNamespace(waiting_sequences=0, waiting_tokens=0, running=7)),
    ]
    found = {
        (sample.name, sample.labels["model"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if family.name.startswith(("tuneserve_requests", "tuneserve_tokens_waiting"))
    }
    assert found == {
        ("tuneserve_requests_waiting", "reviews"): 4,
        ("tuneserve_tokens_waiting", "reviews"): 45,
        ("tuneserve_requests_running", "reviews"): 2,
        ("tuneserve_requests_waiting", "chat"): 0,
        ("tuneserve_tokens_waiting", "chat"): 0,
        ("tuneserve_requests_running", "chat"): 7,
    }


def test_a_dead_engine_shows_no_old_numbers(metrics):
    metrics.failed("reviews", "aaa")
    assert samples(metrics, "tuneserve_engine_up") == {"aaa": 0, "bbb": 1}
    assert samples(metrics, "vllm:num_requests_running") == {"bbb": 2}
    metrics.loaded("reviews", "aaa", MANIFEST, engine(3), 1)
    assert samples(metrics, "tuneserve_engine_up") == {"aaa": 1, "bbb": 1}
    assert samples(metrics, "vllm:num_requests_running") == {"aaa": 3, "bbb": 2}


def test_nothing_is_left_of_a_version_that_is_gone(metrics):
    metrics.shadow.labels("live", "reviews", "aaa", "same").inc()
    metrics.shadow.labels("live", "reviews", "bbb", "same").inc()
    metrics.queue_depth.labels("reviews").set(3)
    for version in ("aaa", "bbb"):
        metrics.count_version("reviews", version, "OK")
    assert samples(metrics, "tuneserve_version_calls_total") == {"aaa": 1, "bbb": 1}
    metrics.forget("reviews", "aaa")
    metrics.count_version("reviews", "aaa", "CANCELLED")
    page = generate_latest(metrics.registry).decode()
    assert '"aaa"' not in page
    assert page.count('"bbb"') > 10
    assert 'tuneserve_queue_depth{model="reviews"} 3.0' in page
    # Again, or one that never answered: a failed load is cleaned up after, too.
    metrics.forget("reviews", "aaa")
    metrics.failed("reviews", "ccc")
    metrics.forget("reviews", "ccc")
    assert '"ccc"' not in generate_latest(metrics.registry).decode()
