"""The calls that run, without a wire: how many at once, and how they end before the server stops."""

import asyncio

import pytest

from tuneserve.server.call import draining
from tuneserve.server.call.draining import Running
from tuneserve.server.call.errors import Overloaded, Unavailable
from tuneserve.server.call.tenants import ADMINISTRATOR, ANYBODY, Tenant

ONE, OTHER = Tenant("one"), Tenant("other")


def limit() -> asyncio.Timeout:
    return asyncio.timeout(None)


async def begun(running: Running, tenant: Tenant, calls: int, caller: str = "") -> list[asyncio.Timeout]:
    limits = [limit() for _ in range(calls)]
    for one in limits:
        await running.begin(one, tenant, caller or tenant.name)
    return limits


async def test_so_many_calls_at_once():
    running = Running(4)
    first, *_ = await begun(running, ANYBODY, 4)
    with pytest.raises(Overloaded, match="4 calls run already") as caught:
        await running.begin(limit(), ANYBODY, ANYBODY.name)
    assert (caught.value.reason, len(running)) == ("CALLS", 4)
    await begun(running, ADMINISTRATOR, 2)
    running.end(first)
    running.end(limit())
    assert len(running) == 5, "one that never began is not counted off"


async def test_a_tenant_leaves_half_to_others():
    running = Running(4)
    first, _ = await begun(running, ONE, 2)
    with pytest.raises(Overloaded, match="2 calls run already"):
        await running.begin(limit(), ONE, ONE.name)
    await begun(running, OTHER, 2)
    running.end(first)
    await running.begin(limit(), ONE, ONE.name)
    with pytest.raises(Overloaded, match="2 calls run already"):
        await running.begin(limit(), OTHER, OTHER.name)
    await begun(Running(1), ONE, 1)


async def test_who_has_less_than_a_share_gets_in_where_it_is_full():
    running = Running(4)
    await begun(running, ANYBODY, 4, "many")
    await begun(running, ANYBODY, 2, "a")
    for caller in ("many", "a"):
        with pytest.raises(Overloaded, match="4 calls run already"):
            await running.begin(limit(), ANYBODY, caller)
    await begun(running, ANYBODY, 1, "b")
    last, *_ = await begun(running, ANYBODY, 1, "c")
    with pytest.raises(Overloaded, match="4 calls run already"):
        await running.begin(limit(), ANYBODY, "d")
    running.end(last)
    with pytest.raises(Overloaded, match="4 calls run already"):
        await running.begin(limit(), ANYBODY, "b")
    await begun(running, ANYBODY, 1, "d")


async def test_a_drain_waits_for_calls_and_refuses_new_ones():
    running = Running(4)
    [one] = await begun(running, ONE, 1)
    drain = asyncio.create_task(running.drain(30))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="shuts down"):
        await running.begin(limit(), OTHER, OTHER.name)
    assert not drain.done()
    running.end(one)
    await drain
    await running.drain(30)


async def test_what_runs_too_long_is_ended():
    running = Running(4)
    ended = []

    async def call() -> None:
        try:
            async with limit() as one:
                await running.begin(one, ONE, ONE.name)
                try:
                    await asyncio.sleep(30)
                finally:
                    running.end(one)
        except TimeoutError:
            ended.append(True)

    tasks = [asyncio.create_task(call()) for _ in range(2)]
    await asyncio.sleep(0)
    await running.drain(0.01)
    await asyncio.gather(*tasks)
    assert (ended, len(running)) == ([True, True], 0)


async def test_calls_that_come_at_the_end_are_held_and_then_refused(monkeypatch):
    monkeypatch.setattr(draining, "_HOLD_SECONDS", 0.01)
    running = Running(4)
    await running.drain(0)
    hold = asyncio.create_task(running.hold())
    await asyncio.sleep(0)
    late = asyncio.create_task(running.begin(limit(), ONE, ONE.name))
    await hold
    assert not late.done()
    running.release()
    with pytest.raises(Unavailable):
        await late
