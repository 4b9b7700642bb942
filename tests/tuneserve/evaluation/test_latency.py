"""How long a single call takes."""

from tuneserve.evaluation import latency


def test_slow_calls_are_fewer():
    """Fifty calls of eight seconds would take seven minutes."""
    now, called = [0.0], list[int]()

    def call(item: int) -> None:
        called.append(item)
        now[0] += 8

    found = latency.latency(call, range(50), clock=lambda: now[0])
    assert (found.p50_ms, found.p95_ms) == (8000, 8000)
    assert called == [0, *range(latency.FEWEST)]


def test_quick_calls_are_all_made_and_the_first_is_not_timed():
    now, called = [0.0], list[int]()

    def call(item: int) -> None:
        now[0] += 0.01 if called else 99.0
        called.append(item)

    found = latency.latency(call, range(50), clock=lambda: now[0])
    assert round(found.p50_ms) == round(found.p95_ms) == 10
    assert called == [0, *range(50)]
