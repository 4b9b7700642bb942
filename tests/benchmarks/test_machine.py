"""The machine that is reported with every result."""

import os
from importlib.metadata import version

import pytest

from tuneserve.benchmarks.machine import machine
from tuneserve.machine.tiers import measured_on


def test_what_a_figure_depends_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    found = machine()
    assert found["tier"] == measured_on()
    assert found["cpu"].startswith(f"{len(os.sched_getaffinity(0))} cores of ")
    assert f"torch {version('torch')}" in found["versions"]
    assert found["preloaded"] == "none"
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc.so.4:/opt/libiomp5.so")
    assert machine()["preloaded"] == "libtcmalloc.so.4, libiomp5.so"
