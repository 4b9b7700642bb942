"""What the device reaches, measured on the one that is there."""

import time

from tuneserve.benchmarks.gpu import roofs


def test_bandwidth_and_products_of_this_machine():
    found = roofs.measure()
    assert found["bandwidth"] == max(found["copied"], found["read"]) > 1e8
    assert found["operations"]["bf16"] > 1e7
    assert found["operations"].keys() | found["missing"].keys() == {"bf16", "fp8", "int8"}


def test_the_fastest_repetition_counts():
    times = iter([0.05, 0.03, 0.01, *[0.02] * 1000])
    assert 0.01 <= roofs._fastest(lambda: time.sleep(next(times)), 0.02, 4) < 0.02
