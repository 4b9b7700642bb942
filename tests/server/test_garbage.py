"""The garbage collector goes through all objects while few calls run, and by itself again after the last server."""

import asyncio
import gc
import platform

import psutil
import pytest

from tuneserve.server import garbage


async def test_python_s_own_way_is_back_when_the_last_server_is_gone():
    before = gc.get_threshold()
    first, second = garbage._no_full_collections(), garbage._no_full_collections()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold()[2] > 1_000_000
    second.__exit__(None, None, None)
    assert gc.get_threshold() == before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own")
def test_what_was_freed_is_given_back():
    def resident() -> int:
        return psutil.Process().memory_info().rss

    some = [bytes(2000) for _ in range(50_000)]
    # The last one keeps glibc from giving back by itself what is below it.
    del some[:-1]
    before = resident()
    garbage.give_back()
    assert before - resident() > 50_000_000
    assert some


@pytest.mark.parametrize(
    ("calls", "much", "collects"),
    [
        pytest.param(0, 1 << 30, True, id="few calls"),
        pytest.param(1000, 1 << 30, False, id="many calls"),
        # The process's own count, which depends on what ran before, is never below zero.
        pytest.param(1000, 0, True, id="many calls and much garbage"),
    ],
)
async def test_it_collects_while_few_calls_run_or_when_there_is_much(monkeypatch, calls, much, collects):
    monkeypatch.setattr(garbage, "_SECONDS", 0.01)
    monkeypatch.setattr(garbage, "_MUCH", much)
    # Servers of other tests collect, too.
    collected = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(asyncio.current_task()))
    collecting = asyncio.create_task(garbage.collect(range(calls)))
    await asyncio.sleep(0.2)
    collecting.cancel()
    await asyncio.gather(collecting, return_exceptions=True)
    assert (collecting in collected) == collects
