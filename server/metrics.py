"""Every metric of the server: name, labels, buckets. An object with a registry of its own; nothing is global.

Label values stay bounded: model names and labels come from checkpoints, methods from the protos, tenants from the
server's own file, never from callers. `model` is a model's name: its versions are added up, except in metrics that also
have a `version`. The engines' own metrics are added to the same exposition under vLLM's names, with the version.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Protocol
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tuneserve.checkpoint import entities
from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.server.histogram import Histogram
from tuneserve.v1 import checkpoint_pb2 as pb

# Seconds. From 1 ms, as for a classification on a GPU, to a long generation.
_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The server's metrics."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        call = ("grpc_type", "grpc_service", "grpc_method")
        self.started = Counter("grpc_server_started", "Calls started.", call, registry=registry)
        self.handled = Counter(
            "grpc_server_handled", "Calls ended, by status code.", (*call, "grpc_code"), registry=registry
        )
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "Time from a call's start to its end.",
            call,
            buckets=_LATENCY,
            registry=registry,
        )
        model = ("model",)
        self.queue_depth = Gauge("tuneserve_queue_depth", "Calls waiting or running.", model, registry=registry)
        self.queue_wait = Histogram(
            "tuneserve_queue_wait_seconds",
            "Time that a request waited for its turn in the engine.",
            model,
            buckets=_LATENCY,
            registry=registry,
        )
        self.rejections = Counter(
            "tuneserve_admission_rejections", "Calls rejected.", (*model, "reason"), registry=registry
        )
        # By status alone, so that refusing a call stays cheap: the method is the caller's word.
        self.refused = Counter(
            "tuneserve_calls_refused",
            "Calls refused before their turn, by status code. They are in no grpc_server metric.",
            ("grpc_code",),
            registry=registry,
        )
        self.requests = Gauge("tuneserve_request_bytes", "Bytes of the requests that wait or run.", registry=registry)
        self.unread = Gauge(
            "tuneserve_unread_bytes", "Bytes of answers that wait to be read by their callers.", registry=registry
        )
        self.first_token = Histogram(
            "tuneserve_time_to_first_token_seconds",
            "Time from a call's start to its first token.",
            model,
            buckets=_LATENCY,
            registry=registry,
        )
        self.token_gap = Histogram(
            "tuneserve_inter_token_seconds",
            "Time between messages of a stream, per token.",
            model,
            buckets=_LATENCY,
            registry=registry,
        )
        self.tokens_in = Counter(
            "tuneserve_prompt_tokens", "Tokens read, including special tokens.", model, registry=registry
        )
        self.tokens_out = Counter("tuneserve_completion_tokens", "Tokens written.", model, registry=registry)
        self.unparsed = Counter(
            "tuneserve_answers_unparsed",
            "Answers returned as plain text because the parser of tool calls or reasoning failed or was too slow.",
            model,
            registry=registry,
        )
        self.texts = Counter("tuneserve_texts_classified", "Texts classified.", model, registry=registry)
        self.predictions = Counter(
            "tuneserve_predictions",
            "Best labels of texts, all labels of texts that may have several, or labels of spans.",
            (*model, "label"),
            registry=registry,
        )
        self.observed = Counter(
            "tuneserve_observed",
            "Texts of a monitor, once for each of their topics.",
            ("monitor", "topic", "sentiment"),
            registry=registry,
        )
        self.answers = Counter(
            "tuneserve_answers",
            "Answers from documents, by outcome: answered, reply, not_found or ungrounded.",
            ("index", "outcome"),
            registry=registry,
        )
        self.citations = Counter(
            "tuneserve_citations",
            "Citations of written answers from documents: kept, or dropped because the passage does not say it.",
            ("index", "result"),
            registry=registry,
        )
        self.feedback = Counter(
            "tuneserve_feedback_rows",
            "Rows of feedback kept, by kind: labels, corrections, preferences, thumbs, clicks.",
            (*model, "kind"),
            registry=registry,
        )
        index = ("index", "tenant")
        self.index_documents = Gauge("tuneserve_index_documents", "Documents of an index.", index, registry=registry)
        self.index_passages = Gauge("tuneserve_index_passages", "Passages of an index.", index, registry=registry)
        self.index_fragments = Gauge(
            "tuneserve_index_fragments",
            "Files of an index that hold its passages, merged in the background.",
            index,
            registry=registry,
        )
        self.index_version = Gauge(
            "tuneserve_index_version", "Version of an index, as answers name it.", index, registry=registry
        )
        self.index_written = Gauge(
            "tuneserve_index_written_timestamp_seconds",
            "When this process last changed an index.",
            index,
            registry=registry,
        )
        self.index_work = Histogram(
            "tuneserve_index_seconds",
            "Time of an index's calls (part search, upsert), and of the store in them (part read, write).",
            ("index", "part"),
            buckets=_LATENCY,
            registry=registry,
        )
        self.confidence = Histogram(
            "tuneserve_prediction_confidence",
            "Probability of the best label, or of a span.",
            model,
            buckets=_CONFIDENCE,
            registry=registry,
        )
        self.model_info = Gauge(
            "tuneserve_model_info",
            "Always 1; its labels describe the model.",
            (*model, "task", "version", "quantization"),
            registry=registry,
        )
        version = ("model", "version")
        self.training_share = Gauge(
            "tuneserve_training_label_share",
            "Share of a label in the training data, to compare predictions with.",
            (*version, "label"),
            registry=registry,
        )
        self.load_seconds = Gauge(
            "tuneserve_model_load_seconds",
            "Time from the start of loading to the answer to the warm-up.",
            version,
            registry=registry,
        )
        self.engine_up = Gauge(
            "tuneserve_engine_up", "1 while the version's engine answers.", version, registry=registry
        )
        self.restarts = Counter(
            "tuneserve_engine_restarts", "Attempts to restart a failed engine.", model, registry=registry
        )
        self.shadow = Counter(
            "tuneserve_shadow",
            "Answers of a shadow, by how they compare with the ones returned.",
            ("alias", *version, "result"),
            registry=registry,
        )
        self.tenant_calls = Counter(
            "tuneserve_tenant_calls", "Calls ended, by tenant.", ("tenant", "grpc_code"), registry=registry
        )
        self.tenant_tokens = Counter(
            "tuneserve_tenant_tokens",
            "Tokens read (kind prompt) and written (kind completion), by tenant.",
            ("tenant", "model", "kind"),
            registry=registry,
        )
        self.version_calls = Counter(
            "tuneserve_version_calls",
            "Calls ended, by the version that answered: to compare versions of one alias.",
            (*version, "grpc_code"),
            registry=registry,
        )
        self.log_lines_dropped = Counter(
            "tuneserve_log_lines_dropped",
            "Log lines lost because nobody read standard error fast enough.",
            registry=registry,
        )
        self.hung_up = Counter(
            "tuneserve_connections_hung_up",
            "Connections closed because too many calls came on them without a key.",
            registry=registry,
        )
        self.ignored = Gauge(
            "tuneserve_networks_ignored",
            "Networks whose new connections are ignored, because they opened too many without a key.",
            registry=registry,
        )
        self.certificate_expiry = Gauge(
            "tuneserve_certificate_expiry_timestamp_seconds",
            "When the certificate that new connections are shown expires; 0 without TLS.",
            registry=registry,
        )
        self.key_expiry = Gauge(
            "tuneserve_key_expiry_timestamp_seconds",
            "When the next API key of the tenants file expires; 0 if none will.",
            registry=registry,
        )
        self.reloaded = Gauge(
            "tuneserve_last_reload_successful",
            "1 while the server uses the last version of a file that it follows; 0: that is refused, see the log.",
            ("file",),
            registry=registry,
        )
        # At 0 from the start, so that a rate includes the first.
        self.refused.labels("RESOURCE_EXHAUSTED")
        # Cached, because labels are looked up several times a call: the library takes a lock and converts the values to
        # text. Labels of these metrics are never removed.
        for metric in (
            *(self.started, self.handled, self.handling, self.refused, self.tenant_calls, self.tenant_tokens),
            *(self.queue_depth, self.queue_wait, self.tokens_in, self.tokens_out, self.first_token, self.token_gap),
            *(self.texts, self.predictions, self.observed, self.confidence, self.index_work),
        ):
            metric.labels = cache(metric.labels)  # type: ignore[assignment, method-assign]
        self._engines: dict[tuple[str, str], CollectorRegistry] = {}
        self._described: dict[tuple[str, str], tuple[str, str, str, str]] = {}
        registry.register(_Merged(self._engines))
        # Of each version in the server: its model's name, and its queue. Set by the server.
        self.queues: Callable[[], Iterable[tuple[str, Queue]]] = tuple
        registry.register(_Queues(lambda: self.queues()))

    def page(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Returns the metrics page, as a WSGI application: always in Prometheus's text format. In OpenMetrics, which
        Prometheus asks for first, the library writes vllm_ for vllm: (prometheus/client_python#1177).
        """
        answer: Iterable[bytes] = make_wsgi_app(self.registry)({**environ, "HTTP_ACCEPT": "text/plain"}, start_response)
        return answer

    def loaded(
        self, name: str, version: str, manifest: pb.Checkpoint, engine: CollectorRegistry, seconds: float
    ) -> None:
        """A version was loaded, for the first time or again. Also exports its engine's own metrics."""
        described = (name, TASK_NAMES[manifest.task], version, manifest.quantization)
        self.add_engine(name, version, engine)
        self.engine_up.labels(name, version).set(1)
        # They start at 0, so that a rate includes the first one.
        self.restarts.labels(name)
        if manifest.task == pb.TASK_GENERATION:
            self.unparsed.labels(name)
        # So do predictions of each label.
        is_tagger = manifest.task == pb.TASK_TOKEN_CLASSIFICATION
        for label in entities.types(manifest.labels) if is_tagger else manifest.labels:
            self.predictions.labels(name, label)
        for label, share in manifest.label_distribution.items():
            self.training_share.labels(name, version, label).set(share)
        self.load_seconds.labels(name, version).set(seconds)
        self.model_info.labels(*described).set(1)
        self._described[name, version] = described

    def failed(self, name: str, version: str) -> None:
        """A version's engine is dead: its own metrics are no longer exported, because their last values are out of
        date.
        """
        self.engine_up.labels(name, version).set(0)
        self.remove_engine(name, version)

    def count_tenant(self, tenant: str, model: str, code: str, prompt: int, completion: int) -> None:
        """A tenant's call ended."""
        self.tenant_calls.labels(tenant, code).inc()
        if model:
            self.tenant_tokens.labels(tenant, model, "prompt").inc(prompt)
            self.tenant_tokens.labels(tenant, model, "completion").inc(completion)

    def count_version(self, name: str, version: str, code: str) -> None:
        """A call to a version ended. One that outlives the version is not counted."""
        if (name, version) in self._described:
            self.version_calls.labels(name, version, code).inc()

    def forget(self, name: str, version: str) -> None:
        """Removes the metrics of a version that was unloaded, if it ever was loaded."""
        self.remove_engine(name, version)
        if described := self._described.pop((name, version), None):
            self.model_info.remove(*described)
            self.load_seconds.remove(name, version)
        with contextlib.suppress(KeyError):
            self.engine_up.remove(name, version)
        for metric in (self.shadow, self.training_share, self.version_calls):
            metric.remove_by_labels({"model": name, "version": version})

    def add_engine(self, name: str, version: str, registry: CollectorRegistry) -> None:
        """Exports an engine's own metrics."""
        self._engines[name, version] = registry

    def remove_engine(self, name: str, version: str) -> None:
        """Stops exporting an engine's own metrics."""
        self._engines.pop((name, version), None)


class Queue(Protocol):
    """What is in front of an engine, and in it."""

    waiting_sequences: int
    waiting_tokens: int

    @property
    def running(self) -> int:
        """The number of sequences in the engine."""


class _Queues(Collector):
    """Gauges of the queues, for autoscalers: vLLM's own `num_requests_waiting` stays near zero, because requests wait
    outside the engine. They are read when they are asked for, and a model's versions are added up.
    """

    def __init__(self, queues: Callable[[], Iterable[tuple[str, Queue]]]) -> None:
        self._queues = queues

    def collect(self) -> Iterable[Metric]:
        waiting, tokens, running = (
            GaugeMetricFamily(f"tuneserve_{name}", documentation, labels=["model"])
            for name, documentation in (
                ("requests_waiting", "Texts and prompts that wait for their turn in the engine."),
                ("tokens_waiting", "Tokens of the texts and prompts that wait."),
                ("requests_running", "Texts and prompts in the engine."),
            )
        )
        found: dict[str, list[Queue]] = {}
        for name, queue in self._queues():
            found.setdefault(name, []).append(queue)
        for name, queues in found.items():
            waiting.add_metric([name], sum(queue.waiting_sequences for queue in queues))
            tokens.add_metric([name], sum(queue.waiting_tokens for queue in queues))
            running.add_metric([name], sum(queue.running for queue in queues))
        return (waiting, tokens, running)


class _Merged(Collector):
    """Merges registries with the same metric names into one family for each name, because the exposition allows neither
    a name nor a sample twice. Each sample gets a version label: two versions of a model have the same name in vLLM.
    """

    def __init__(self, registries: Mapping[tuple[str, str], CollectorRegistry]) -> None:
        self._registries = registries

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        # A copy, because the exposition runs in a thread of its own.
        for (_, version), registry in list(self._registries.items()):
            for metric in registry.collect():
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                family.samples += [
                    sample._replace(labels={**sample.labels, "version": version}) for sample in metric.samples
                ]
        return iter(families.values())

    def describe(self) -> Iterator[Metric]:
        # Without this the registry would collect at registration, to find out names that are not known yet.
        return iter(())
