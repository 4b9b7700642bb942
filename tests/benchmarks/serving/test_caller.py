"""A caller in a process of its own: its waits, and errors by status."""

import asyncio

import pytest

from tuneserve.benchmarks.serving.caller import Caller

from .conftest import Server


async def test_waits_and_errors_are_counted(served: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> None:
    server, target = served
    server.key, server.delay, server.refuse = "secret", 0.05, 3
    monkeypatch.setenv("TUNESERVE_KEY", "secret")
    found = await asyncio.to_thread(Caller(target, "sentiment", 1.5).figures)
    calls = len(server.requests)
    assert (found["caller_calls"], found["caller_errors"]) == (calls, {"RESOURCE_EXHAUSTED": calls // 3})
    assert calls >= 3
    assert 50 <= found["caller_ms_p50"] <= found["caller_ms_p99"] <= found["caller_ms_max"]
