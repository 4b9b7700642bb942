import threading

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from tuneserve.server import histogram

BOUNDS = (0.1, 0.5, 1.0, 30.0)


def made(kind, registry):
    return kind("seconds", "How long.", ["model"], buckets=BOUNDS, registry=registry)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1e6) | st.sampled_from(BOUNDS)), max_size=50))
def test_values_are_counted_as_prometheus_client_counts_them(values):
    registries = CollectorRegistry(), CollectorRegistry()
    for kind, registry in zip((prometheus_client.Histogram, histogram.Histogram), registries, strict=True):
        both = made(kind, registry)
        for model, value in values:
            both.labels(model).observe(round(value, 3))
    expected, found = ({**read(registry)} for registry in registries)
    assert found.keys() == expected.keys()
    assert all(abs(found[key] - value) <= 1e-9 * value for key, value in expected.items())


def read(registry):
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    return {(one.name, *one.labels.items()): one.value for one in samples if not one.name.endswith("_created")}


def test_few_values_wait_to_be_counted(monkeypatch):
    monkeypatch.setattr(histogram, "_MOST", 3)
    one = made(histogram.Histogram, CollectorRegistry()).labels("a")
    for _ in range(8):
        one.observe(0.2)
    assert len(one._waiting) == 2


def test_no_value_is_lost_or_counted_twice_by_threads(monkeypatch):
    monkeypatch.setattr(histogram, "_MOST", 10)
    registry = CollectorRegistry()
    one = made(histogram.Histogram, registry).labels("a")

    def observe() -> None:
        for _ in range(5000):
            one.observe(0.2)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        generate_latest(registry)
    assert read(registry)["seconds_count", ("model", "a")] == 20_000


def test_an_exemplar_is_kept():
    registry = CollectorRegistry()
    made(histogram.Histogram, registry).labels("a").observe(0.2, {"trace": "1"})
    [metric] = registry.collect()
    assert [one.exemplar.labels for one in metric.samples if one.exemplar] == [{"trace": "1"}]
