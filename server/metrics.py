"""Every metric of ours: name, labels, buckets. An object on a registry of its own; nothing global.

Labels stay bounded: model names and labels come from checkpoints, methods from the protos, never from callers.
vLLM's metrics are the engines' own and are added to the same exposition under vLLM's names.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

# Seconds. From 1 ms, where a classification on a GPU is, to a long generation.
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
        self.rejections = Counter(
            "tuneserve_admission_rejections", "Calls turned away.", (*model, "reason"), registry=registry
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
            "Time between messages of a stream, by token.",
            model,
            buckets=_LATENCY,
            registry=registry,
        )
        self.tokens_in = Counter(
            "tuneserve_prompt_tokens", "Tokens read, special tokens included.", model, registry=registry
        )
        self.tokens_out = Counter("tuneserve_completion_tokens", "Tokens written.", model, registry=registry)
        self.texts = Counter("tuneserve_texts_classified", "Texts classified.", model, registry=registry)
        self.predictions = Counter(
            "tuneserve_predictions",
            "Best labels of texts, or labels of spans.",
            (*model, "label"),
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
        self.load_seconds = Gauge(
            "tuneserve_model_load_seconds",
            "Time from loading to the warm-up's answer.",
            model,
            registry=registry,
        )
        self.engine_up = Gauge("tuneserve_engine_up", "1 while the model's engine answers.", model, registry=registry)
        self._engines: dict[str, CollectorRegistry] = {}
        registry.register(_Merged(self._engines))

    def add_engine(self, model: str, registry: CollectorRegistry) -> None:
        """Shows an engine's own metrics too."""
        self._engines[model] = registry


class _Merged(Collector):
    """Several registries with the same metric names, as one family a name: the exposition allows no name twice."""

    def __init__(self, registries: Mapping[str, CollectorRegistry]) -> None:
        self._registries = registries

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for registry in list(self._registries.values()):
            for metric in registry.collect():
                if metric.name in families:
                    families[metric.name].samples.extend(metric.samples)
                else:
                    families[metric.name] = metric
        return iter(families.values())

    def describe(self) -> Iterator[Metric]:
        # Without this the registry would collect at registration, to learn names that are not known yet.
        return iter(())
