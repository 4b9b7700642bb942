"""Each alert fires, stays silent before, and resolves: Prometheus's own promtool evaluates the rules of the chart."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import helm_python
import promql_parser
import pytest
import yaml

from tuneserve.server.metrics import _LATENCY, Metrics

from .rendering import MINIMAL, render
from .test_chart import NODES

RULES = ("prometheusrule", "prometheusrule-burn", "prometheusrule-models")
OURS = {"namespace": "ml", "job": "rel-tuneserve-metrics"}
ENGINE = {"model": "a", "version": "1", "pod": "p", **OURS}
VLLM = {"model_name": "a", "pod": "p", **OURS}
CALLS = {"grpc_service": "tuneserve.v1.ClassificationService", "grpc_type": "unary", "pod": "p", **OURS}
FIRST = {"model": "a", "pod": "p", **OURS}
DAY = 24 * 60

Spans = Sequence[tuple[float, int]]  # a value, and for how many minutes


@dataclass(frozen=True)
class Series:
    """One value a minute."""

    name: str
    labels: dict[str, str]
    values: Sequence[float]

    def __str__(self) -> str:
        return self.name + "{" + ", ".join(f'{key}="{value}"' for key, value in self.labels.items()) + "}"


def gauge(name: str, labels: dict[str, str], *spans: tuple[float, int]) -> Series:
    return Series(name, labels, [value for value, minutes in spans for _ in range(minutes)])


def counter(name: str, labels: dict[str, str], *spans: tuple[float, int]) -> Series:
    """Grows by so much a minute."""
    return Series(name, labels, list(accumulate(gauge(name, labels, *spans).values)))


@dataclass(frozen=True)
class Case:
    """Fires at one minute, if any, and is silent at others."""

    alert: str
    series: Sequence[Series]
    labels: dict[str, str]
    fires: int | None
    silent: Sequence[int]
    values: dict[str, Any] = field(default_factory=dict)


def predictions(*spans: tuple[float, float, int]) -> list[Series]:
    """Of two labels, so many each minute."""
    return [
        counter("tuneserve_predictions_total", {**FIRST, "label": label}, *((span[place], span[2]) for span in spans))
        for place, label in enumerate(["neg", "pos"])
    ]


def training(neg: float, minutes: int) -> list[Series]:
    shares = {"neg": neg, "pos": 1 - neg}
    return [
        gauge("tuneserve_training_label_share", {**ENGINE, "label": label}, (share, minutes))
        for label, share in shares.items()
    ]


def confidence(*spans: tuple[float, int]) -> list[Series]:
    minutes = sum(minutes for _, minutes in spans)
    sums = [(value * 20, minutes) for value, minutes in spans]
    return [
        counter("tuneserve_prediction_confidence_sum", FIRST, *sums),
        counter("tuneserve_prediction_confidence_count", FIRST, (20, minutes)),
        *predictions((10, 10, minutes)),
    ]


def handled(*failing: tuple[float, int]) -> list[Series]:
    minutes = sum(minutes for _, minutes in failing)
    return [
        counter("grpc_server_handled_total", {**CALLS, "grpc_code": "OK"}, (60, minutes)),
        # What callers did wrong does not count.
        counter("grpc_server_handled_total", {**CALLS, "grpc_code": "INVALID_ARGUMENT"}, (60, minutes)),
        counter("grpc_server_handled_total", {**CALLS, "grpc_code": "UNAVAILABLE"}, *failing),
    ]


def timed(name: str, labels: dict[str, str], *slow: tuple[float, int]) -> list[Series]:
    minutes = sum(minutes for _, minutes in slow)
    return [
        counter(f"{name}_bucket", {**labels, "le": "1.0"}, *((100 - many, minutes) for many, minutes in slow)),
        counter(f"{name}_bucket", {**labels, "le": "2.5"}, (100, minutes)),
        counter(f"{name}_count", labels, (100, minutes)),
    ]


def turned_away(reason: str) -> list[Series]:
    labels = {"model": "", "reason": reason, "pod": "p", **OURS}
    return [counter("tuneserve_admission_rejections_total", labels, (0, 10), (1, 20), (0, 20))]


def waits(*slow: tuple[float, int]) -> list[Series]:
    minutes = sum(minutes for _, minutes in slow)
    name = "tuneserve_queue_wait_seconds_bucket"
    return [
        counter(name, {**FIRST, "le": "5.0"}, *((100 - many, minutes) for many, minutes in slow)),
        counter(name, {**FIRST, "le": "10.0"}, (100, minutes)),
        counter(name, {**FIRST, "le": "+Inf"}, (100, minutes)),
    ]


def replicas(*available: tuple[float, int], wanted: int = 1) -> list[Series]:
    labels = {"namespace": "ml", "deployment": "rel-tuneserve"}
    return [
        gauge("kube_deployment_status_replicas_available", labels, *available),
        gauge("kube_deployment_spec_replicas", labels, (wanted, sum(minutes for _, minutes in available))),
    ]


def leaders(*ready: tuple[float, int], wanted: int = 1) -> list[Series]:
    """Of groups of machines, whose workers are in StatefulSets, too."""
    minutes = sum(minutes for _, minutes in ready)
    sets = [("rel-tuneserve", wanted, ready), ("rel-tuneserve-0", 1, [(1, minutes)])]
    return [
        one
        for name, replicas, spans in sets
        for labels in [{"namespace": "ml", "statefulset": name}]
        for one in (
            gauge("kube_statefulset_status_replicas_ready", labels, *spans),
            gauge("kube_statefulset_replicas", labels, (replicas, minutes)),
        )
    ]


def scaled(name: str, *current: tuple[float, int]) -> list[Series]:
    labels, kube = {"namespace": "ml", "horizontalpodautoscaler": name}, "kube_horizontalpodautoscaler_"
    minutes = sum(minutes for _, minutes in current)
    return [
        gauge(f"{kube}status_current_replicas", labels, *current),
        gauge(f"{kube}spec_max_replicas", labels, (4, minutes)),
    ]


def blind(active: Sequence[tuple[float, int]], *current: tuple[float, int]) -> list[Series]:
    labels, kube = {"namespace": "ml", "horizontalpodautoscaler": "rel-tuneserve"}, "kube_horizontalpodautoscaler_"
    condition = {**labels, "condition": "ScalingActive", "status": "false"}
    return [
        gauge(f"{kube}status_condition", condition, *active),
        gauge(f"{kube}status_current_replicas", labels, *current),
    ]


def observed(*spans: tuple[float, float, int]) -> list[Series]:
    """Texts of one topic, so many of each sentiment a minute; and of another, that stay as they are."""
    labels, minutes = {"monitor": "news", "pod": "p", **OURS}, sum(span[2] for span in spans)
    return [
        *(
            counter("tuneserve_observed_total", {**labels, "topic": "sports", "sentiment": sentiment}, *parts)
            for sentiment, parts in (
                ("Negative", [(span[0], span[2]) for span in spans]),
                ("positive", [(span[1], span[2]) for span in spans]),
            )
        ),
        counter("tuneserve_observed_total", {**labels, "topic": "arts", "sentiment": "Negative"}, (20, minutes)),
        counter("tuneserve_observed_total", {**labels, "topic": "arts", "sentiment": "positive"}, (40, minutes)),
    ]


def of_index(name: str, label: str, values: Sequence[str], *spans: tuple[float, float, int]) -> list[Series]:
    """Of an index, so many of each of two values a minute."""
    return [
        counter(name, {"index": "docs", "pod": "p", label: value, **OURS}, *((span[place], span[2]) for span in spans))
        for place, value in enumerate(values)
    ]


def answers(*spans: tuple[float, float, int]) -> list[Series]:
    return of_index("tuneserve_answers_total", "outcome", ("not_found", "answered"), *spans)


def written(*spans: tuple[float, float, int]) -> list[Series]:
    return of_index("tuneserve_answers_total", "outcome", ("ungrounded", "answered"), *spans)


def citations(*spans: tuple[float, float, int]) -> list[Series]:
    return of_index("tuneserve_citations_total", "result", ("dropped", "kept"), *spans)


KEDA = {
    "kedaEnabled": True,
    "kedaPrometheusAddress": "http://prometheus:9090",
    "kedaMinReplicas": 0,
    "kedaActivationQuery": "sum(rate(calls_total[2m]))",
    "startupSeconds": 600,
}
DEPLOYMENT = {"namespace": "ml", "deployment": "rel-tuneserve"}
LEADERS = {"namespace": "ml", "statefulset": "rel-tuneserve"}
POD = {"namespace": "ml", "pod": "rel-tuneserve-1-x"}
BY_MODEL = {"model": "a", **OURS}
NEGATIVE = {"prometheusRuleNegative": "0|bad"}
LATENCY, FIRST_TOKEN = "grpc_server_handling_seconds", "tuneserve_time_to_first_token_seconds"
BY_INDEX = {"index": "docs", **OURS}
BY_TOPIC = {"monitor": "news", "topic": "sports", **OURS}
EXPIRY = 15 * 86400
BY_TENANT = {"index": "docs", "tenant": "acme", **OURS}
# Of two pods, which look one after the other.
FRAGMENTS = {"p": [(3, 10), (150, 30), (3, 20)], "q": [(3, 11), (150, 29), (3, 20)]}

CASES = [
    Case("TuneserveEngineDown", [gauge("tuneserve_engine_up", ENGINE, (1, 5), (0, 10), (1, 10))], ENGINE, 8, [6, 16]),
    Case(
        "TuneserveEngineKeepsFailing",
        [counter("tuneserve_engine_restarts_total", FIRST, (0, 60), (1, 5), (0, 90))],
        FIRST,
        68,
        [59, 130],
    ),
    Case(
        "TuneserveCallsTurnedAway",
        [counter("tuneserve_admission_rejections_total", {**FIRST, "reason": "queue_full"}, (0, 10), (1, 20), (0, 20))],
        {"namespace": "ml", "model": "a", "reason": "queue_full"},
        23,
        [18, 37],
    ),
    # Of no model: too many calls at once, or their requests too large together.
    *(
        Case("TuneserveCallsTurnedAway", turned_away(reason), {"namespace": "ml", "reason": reason}, 23, [18, 37])
        for reason in ("calls", "requests")
    ),
    # What one caller brings upon itself.
    *(
        Case("TuneserveCallsTurnedAway", turned_away(reason), {}, None, [23, 30])
        for reason in ("request_quota", "token_quota", "unread")
    ),
    Case("TuneserveLongQueueWait", waits((0, 10), (100, 30), (0, 20)), {"namespace": "ml", "model": "a"}, 30, [10, 50]),
    Case("TuneserveNoPodReady", replicas((1, 5), (0, 10), (1, 10)), DEPLOYMENT, 12, [8, 16]),
    Case("TuneserveNoPodReady", replicas((0, 60), wanted=0), DEPLOYMENT, None, [30, 59]),
    Case("TuneserveNoPodReady", replicas((0, 20), (1, 10)), DEPLOYMENT, 12, [8, 21], KEDA),
    Case("TuneserveNoPodReady", leaders((1, 5), (0, 10), (1, 10)), LEADERS, 12, [8, 16], NODES),
    Case("TuneserveNoPodReady", leaders((0, 60), wanted=0), {}, None, [30, 59], NODES),
    Case(
        "TuneserveAtMaxReplicas",
        scaled("rel-tuneserve", (3, 10), (4, 20), (3, 10)),
        {"namespace": "ml", "horizontalpodautoscaler": "rel-tuneserve"},
        27,
        [20, 31],
    ),
    Case(
        "TuneserveAtMaxReplicas",
        scaled("keda-hpa-rel-tuneserve", (4, 20), (3, 10)),
        {"namespace": "ml", "horizontalpodautoscaler": "keda-hpa-rel-tuneserve"},
        16,
        [10, 21],
        KEDA,
    ),
    Case(
        "TuneserveAutoscalerBlind",
        blind([(0, 10), (1, 20), (0, 10)], (2, 40)),
        {"namespace": "ml", "horizontalpodautoscaler": "rel-tuneserve"},
        27,
        [20, 31],
    ),
    # Scaled to zero, which also ends the autoscaler's work.
    Case("TuneserveAutoscalerBlind", blind([(1, 40)], (0, 40)), {}, None, [30]),
    Case("TuneserveDrainDoesNotEnd", [gauge("kube_pod_deletion_timestamp", POD, (600, 15))], POD, 12, [10, 25]),
    Case(
        "TuneserveKvCacheFull",
        [gauge("vllm:kv_cache_usage_perc", VLLM, (0.5, 5), (0.99, 15), (0.5, 10))],
        VLLM,
        17,
        [10, 21],
    ),
    Case(
        "TuneservePreemptions",
        [counter("vllm:num_preemptions_total", VLLM, (0, 10), (30, 20), (0, 20))],
        VLLM,
        24,
        [15, 37],
    ),
    Case(
        "TuneserveKeyExpires",
        [gauge("tuneserve_key_expiry_timestamp_seconds", {"pod": "p", **OURS}, (EXPIRY, 2 * DAY), (6 * EXPIRY, 60))],
        OURS,
        DAY + 65,
        [DAY + 30, 2 * DAY + 10],
    ),
    Case("TuneserveKeyExpires", [gauge("tuneserve_key_expiry_timestamp_seconds", OURS, (0, 120))], {}, None, [110]),
    Case(
        "TuneserveIndexNotMerged",
        [gauge("tuneserve_index_fragments", {**BY_TENANT, "pod": pod}, *spans) for pod, spans in FRAGMENTS.items()],
        {**BY_TENANT},
        30,
        [9, 20, 42],
    ),
    Case("TuneserveIndexNotMerged", [gauge("tuneserve_index_fragments", BY_TENANT, (100, 60))], {}, None, [59]),
    Case(
        "TuneserveFileRefused",
        [gauge("tuneserve_last_reload_successful", {"file": "config", "pod": "p", **OURS}, (1, 5), (0, 20), (1, 5))],
        {"file": "config", "pod": "p", **OURS},
        15,
        [4, 8, 28],
    ),
    Case(
        "TuneserveCertificateExpires",
        [
            gauge(
                "tuneserve_certificate_expiry_timestamp_seconds",
                {"pod": "p", **OURS},
                (EXPIRY, 2 * DAY),
                (6 * EXPIRY, 60),
            )
        ],
        {"pod": "p", **OURS},
        DAY + 65,
        [DAY + 30, 2 * DAY + 10],
    ),
    Case(
        "TuneserveCertificateExpires",
        [gauge("tuneserve_certificate_expiry_timestamp_seconds", {"pod": "p", **OURS}, (0, 120))],
        {},
        None,
        [110],
    ),
    Case("TuneserveCallsFailFast", handled((0, 60), (6, 30), (0, 60)), OURS, 85, [58, 100]),
    Case("TuneserveCallsFail", handled((0, 360), (2, 180), (0, 90)), OURS, 530, [300, 575]),
    Case("TuneserveCallsSlowFast", timed(LATENCY, CALLS, (0, 60), (50, 30), (0, 60)), OURS, 85, [58, 100]),
    Case("TuneserveCallsSlowFast", timed(FIRST_TOKEN, FIRST, (0, 60), (50, 30), (0, 60)), OURS, 85, [58, 100]),
    # However long they are, they may be long generations.
    *(
        Case("TuneserveCallsSlowFast", timed(LATENCY, {**CALLS, "grpc_service": service}, (50, 90)), {}, None, [85])
        for service in ("tuneserve.v1.GenerationService", "inference.GRPCInferenceService")
    ),
    Case("TuneserveCallsSlow", timed(LATENCY, CALLS, (0, 360), (20, 180), (0, 90)), OURS, 530, [300, 575]),
    Case(
        "TuneservePredictionsShifted",
        [*predictions((10, 10, 60), (1, 19, 150), (10, 10, 150)), *training(0.5, 360)],
        BY_MODEL,
        200,
        [60, 350],
    ),
    # Too few to tell.
    Case("TuneservePredictionsShifted", [*predictions((0, 2, 240)), *training(0.5, 240)], {}, None, [200]),
    Case(
        "TuneserveLabelSurges",
        predictions((6, 24, DAY), (21, 9, 30), (6, 24, 30)),
        {**BY_MODEL, "label": "neg"},
        DAY + 20,
        [DAY - 1, DAY + 5, DAY + 45],
    ),
    # Three times as many of every label.
    Case("TuneserveLabelSurges", predictions((6, 24, DAY), (18, 72, 60)), {}, None, [DAY + 30, DAY + 59]),
    Case(
        "TuneserveConfidenceFalls",
        confidence((0.9, DAY), (0.6, 120), (0.9, 120)),
        BY_MODEL,
        DAY + 110,
        [DAY - 1, DAY + 30, DAY + 230],
    ),
    Case(
        "TuneserveNegativeSurges",
        observed((9, 51, 240), (24, 36, 15), (9, 51, 30)),
        BY_TOPIC,
        250,
        [239, 241, 270],
    ),
    # Another label is the negative one.
    Case("TuneserveNegativeSurges", observed((9, 51, 240), (24, 36, 30)), {}, None, [260], NEGATIVE),
    # Five times as many texts, with the same share.
    Case("TuneserveNegativeSurges", observed((9, 51, 240), (45, 255, 30)), {}, None, [250, 269]),
    # Too few to tell.
    Case("TuneserveNegativeSurges", observed((0.5, 4.5, 240), (5, 0, 30)), {}, None, [269]),
    Case(
        "TuneserveAnswersNotFound",
        answers((1, 9, 600), (6, 4, 120), (1, 9, 120)),
        BY_INDEX,
        690,
        [599, 610, 839],
    ),
    # Too few to tell.
    Case("TuneserveAnswersNotFound", answers((0.1, 0.5, 600), (0.5, 0.1, 120)), {}, None, [719]),
    Case("TuneserveAnswersUngrounded", written((1, 9, 120), (5, 5, 90), (1, 9, 90)), BY_INDEX, 190, [119, 299]),
    Case("TuneserveAnswersUngrounded", written((0.4, 0.4, 180)), {}, None, [179]),
    Case("TuneserveCitationsDropped", citations((1, 9, 120), (5, 5, 90), (1, 9, 90)), BY_INDEX, 190, [119, 299]),
    Case("TuneserveCitationsDropped", citations((0.4, 0.4, 180)), {}, None, [179]),
]


def rules(chart: helm_python.Chart, values: dict[str, Any]) -> list[dict[str, Any]]:
    manifests = render(chart, MINIMAL | values | {"prometheusRuleEnabled": True})
    return [group for name in RULES for group in manifests[name]["spec"]["groups"]]


def run(promtool: Path, *command: str | Path) -> str:
    result = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.fires}")
def test_an_alert_fires_and_resolves(chart: helm_python.Chart, promtool: Path, tmp_path: Path, case: Case) -> None:
    groups = rules(chart, case.values)
    severity = None
    for rule in (rule for group in groups for rule in group["rules"]):
        # promtool would compare the words, too.
        rule.pop("annotations", None)
        if rule.get("alert") == case.alert:
            severity = rule["labels"]["severity"]
    assert severity
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    expected: dict[int, list[Any]] = {minute: [] for minute in case.silent}
    if case.fires:
        expected[case.fires] = [{"exp_labels": {**case.labels, "severity": severity}}]
    test = {
        "interval": "1m",
        "input_series": [
            {"series": str(one), "values": " ".join(f"{value:.6g}" for value in one.values)} for one in case.series
        ],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": alerts}
            for minute, alerts in expected.items()
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    run(promtool, "test", "rules", tmp_path / "test.yaml")


def test_every_alert_has_a_case_and_words_that_promtool_can_fill_in(
    chart: helm_python.Chart, promtool: Path, tmp_path: Path
) -> None:
    groups = rules(chart, {})
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert {rule["alert"] for rule in alerts} == {case.alert for case in CASES if case.fires}
    assert all(rule["annotations"].keys() == {"summary", "description"} for rule in alerts)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    run(promtool, "check", "rules", tmp_path / "rules.yaml")


def selectors(node: Any) -> Iterator[Any]:
    """The vector selectors of an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if child := getattr(node, name, None):
            yield from selectors(child)
    for child in getattr(node, "args", None) or ():
        yield from selectors(child)


def test_rules_ask_for_this_releases_metrics_that_the_server_has(chart: helm_python.Chart) -> None:
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    known = {metric.name + suffix for metric in Metrics().registry.collect() for suffix in suffixes[metric.type]}
    groups = rules(chart, {})
    known |= {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    asked = [one for group in groups for rule in group["rules"] for one in selectors(promql_parser.parse(rule["expr"]))]
    assert len(asked) > 50
    for selector in asked:
        matchers = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
        assert matchers["namespace"] == "ml"
        names = set((selector.name or matchers["__name__"]).split("|"))
        others = {name for name in names if re.match("kube_|vllm:", name)}
        assert names - others <= known
        assert matchers.get("job") == OURS["job"] or all(name.startswith("kube_") for name in names)


def test_goals_are_values(chart: helm_python.Chart) -> None:
    edges = chart.schema["properties"]["prometheusRuleLatencySeconds"]["enum"]
    assert edges == list(_LATENCY)
    for seconds in edges:
        values = {
            "prometheusRuleAvailability": 0.995,
            "prometheusRuleLatencyShare": 0.95,
            "prometheusRuleLatencySeconds": seconds,
            "prometheusRuleQueueWaitSeconds": 0.25,
        }
        expressions = [rule["expr"] for group in rules(chart, values) for rule in group["rules"]]
        # As the server writes it.
        assert any(f'le="{float(seconds)}"' in one for one in expressions)
        assert any(one.endswith("14.4 * (1 - 0.995)") for one in expressions)
        assert any(one.endswith("6 * (1 - 0.95)") for one in expressions)
        assert any(one.endswith("> 0.25") for one in expressions)
