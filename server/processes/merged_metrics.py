"""`/metrics` of a server of several processes: one page from theirs.

Counters and histograms are added up, also those of processes that have ended, as they were when last seen: a sum that
falls would look like a restart of everything. Gauges of queues are added up, those that describe a model are the same
in all processes, and all others get the label `process`.
"""

import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

# Of the name of a sample, and its labels.
Key = tuple[str, tuple[tuple[str, str], ...]]

_SCRAPE_SECONDS = 3.0
_COUNTED = ("counter", "histogram", "summary")
_SUMMED = {
    "tuneserve_queue_depth",
    "tuneserve_request_bytes",
    "tuneserve_requests_running",
    "tuneserve_requests_waiting",
    "tuneserve_tokens_waiting",
    "tuneserve_unread_bytes",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
}
_SAME = {
    "tuneserve_certificate_expiry_timestamp_seconds",
    "tuneserve_index_documents",
    "tuneserve_index_fragments",
    "tuneserve_index_passages",
    "tuneserve_index_version",
    "tuneserve_model_info",
    "tuneserve_training_label_share",
}


@dataclass(frozen=True)
class Source:
    """A running process."""

    number: int
    pid: int
    address: str  # of its own metrics


@dataclass
class _Family:
    documentation: str
    kind: str
    values: dict[Key, float] = field(default_factory=dict)


class MergedMetrics:
    """The page, and the metrics of the processes themselves."""

    def __init__(self, sources: Callable[[], Iterable[Source]]) -> None:
        """`sources` returns the processes that answer now."""
        self._registry = registry = CollectorRegistry()
        self.up = Gauge(
            "tuneserve_process_up", "1 while the process takes connections.", ["process"], registry=registry
        )
        self.restarts = Counter(
            "tuneserve_process_restarts", "Processes started again.", ["process"], registry=registry
        )
        registry.register(_Merged(sources))

    def page(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Returns the page, as a WSGI application: always in Prometheus's text format, as `Metrics.page`."""
        answer: Iterable[bytes] = make_wsgi_app(self._registry)(
            {**environ, "HTTP_ACCEPT": "text/plain"}, start_response
        )
        return answer


class _Merged(Collector):
    """Used by one thread at a time."""

    def __init__(self, sources: Callable[[], Iterable[Source]]) -> None:
        self._sources = sources
        self._last: dict[int, dict[str, _Family]] = {}  # what is counted, by process id
        self._ended: dict[str, _Family] = {}  # the sums of processes that have ended

    def collect(self) -> Iterator[Metric]:
        sources, merged = list(self._sources()), dict[str, _Family]()
        for pid in self._last.keys() - {source.pid for source in sources}:
            _add(self._ended, self._last.pop(pid))
        with ThreadPoolExecutor(max(1, len(sources))) as pool:
            for source, families in zip(sources, pool.map(_scrape, sources), strict=True):
                # One that does not answer now keeps its counts.
                if families is not None:
                    self._last[source.pid] = {name: one for name, one in families.items() if one.kind in _COUNTED}
                    _add(merged, {name: one for name, one in families.items() if one.kind not in _COUNTED})
        for counted in (self._ended, *self._last.values()):
            _add(merged, counted)
        for name, family in merged.items():
            metric = Metric(name, family.documentation, family.kind)
            for (sample, labels), value in family.values.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric

    def describe(self) -> Iterator[Metric]:
        # Without this the registry would collect at registration.
        return iter(())


def _add(to: dict[str, _Family], families: Mapping[str, _Family]) -> None:
    for name, family in families.items():
        into = to.setdefault(name, _Family(family.documentation, family.kind)).values
        for key, value in family.values.items():
            into[key] = value if name in _SAME else into.get(key, 0.0) + value


def _scrape(source: Source) -> dict[str, _Family] | None:
    """Returns the metrics of a process; None if it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{source.address}/metrics", timeout=_SCRAPE_SECONDS) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    found: dict[str, _Family] = {}
    for metric in text_string_to_metric_families(text):
        family = found[metric.name] = _Family(metric.documentation, metric.type)
        is_own = metric.type not in _COUNTED and metric.name not in _SUMMED | _SAME
        for sample in metric.samples:
            labels = sample.labels | ({"process": str(source.number)} if is_own else {})
            family.values[sample.name, tuple(labels.items())] = sample.value
    return found
