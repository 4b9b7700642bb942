"""The garbage collector goes through all objects while few calls run, and by itself again after the last server."""

import asyncio
import gc

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


@pytest.mark.parametrize("calls", [0, 1000])
async def test_it_collects_while_few_calls_run(monkeypatch, calls):
    monkeypatch.setattr(garbage, "_SECONDS", 0.01)
    collected = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(1))
    collecting = asyncio.create_task(garbage.collect(range(calls)))
    await asyncio.sleep(0.2)
    collecting.cancel()
    await asyncio.gather(collecting, return_exceptions=True)
    assert bool(collected) == (not calls)
