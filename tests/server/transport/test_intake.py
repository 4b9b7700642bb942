"""Calls before their turn, without a wire: whose they are, and which of them wait."""

import asyncio
from types import SimpleNamespace

import pytest

from tuneserve.server.call import context as calls
from tuneserve.server.call.draining import Running
from tuneserve.server.call.errors import Overloaded, Unauthenticated, Unavailable
from tuneserve.server.call.tenants import ADMINISTRATOR, Tenants, hashed
from tuneserve.server.metrics import Metrics
from tuneserve.server.transport import intake, unauthenticated
from tuneserve.server.transport.authentication import Authentication
from tuneserve.server.transport.intake import Intake
from tuneserve.server.transport.unauthenticated import UnauthenticatedConnections
from tuneserve.server.turns import Entrance, caller

PEER = "ipv4:10.0.0.1:4711"


def context(*metadata: tuple[str, str | bytes], peer: str = PEER):
    return SimpleNamespace(invocation_metadata=lambda: metadata, peer=lambda: peer, auth_context=dict)


@pytest.fixture
def entrance() -> Entrance:
    return Entrance()


@pytest.fixture
def running() -> Running:
    return Running(4)


@pytest.fixture
def port(entrance, running, tmp_path) -> Intake:
    """One where callers show keys."""
    (tmp_path / "tenants.yaml").write_text(f"tenants: {{one: {{keys: ['{hashed('key')}']}}}}")
    authentication = Authentication(Tenants(tmp_path / "tenants.yaml"), UnauthenticatedConnections(lambda: None))
    return Intake(Metrics(), running, entrance, authentication=authentication)


def refused(port: Intake) -> dict[str, float]:
    """How many calls were refused, by status."""
    [metric] = port.metrics.refused.collect()
    counts = {sample.labels["grpc_code"]: sample.value for sample in metric.samples if sample.name.endswith("_total")}
    return {code: count for code, count in counts.items() if count}


async def taken(port: Intake, call) -> calls.Call:
    found = port.look(call)
    await port.wait(found)
    port.begin(found)
    assert calls.current() is found
    return found


async def test_a_caller_is_the_tenant_of_a_key(port):
    call = await taken(port, context(("x-api-key", "key"), ("x-request-id", "mine"), ("a-bin", b"1")))
    assert (call.tenant.name, call.caller, call.request_id, call.refused) == ("one", "one", "mine", None)
    assert caller() == "one"
    assert "a-bin" not in call.metadata


async def test_two_keys_are_none(port):
    call = await taken(port, context(("x-api-key", "key"), ("x-api-key", "key")))
    assert isinstance(call.refused, Unauthenticated)


async def test_who_shows_no_key_is_an_address_until_its_connection_is_closed(port):
    call = await taken(port, context())
    assert isinstance(call.refused, Unauthenticated)
    assert call.refused.__traceback__ is None, "its frames know the call"
    assert call.caller == "ipv4:10.0.0.1"
    for _ in range(unauthenticated._CONNECTION[0] - 1):
        port.look(context())
    for _ in range(2):
        with pytest.raises(Unavailable, match="without a key"):
            port.look(context())
    assert refused(port) == {"UNAVAILABLE": 2}
    # Another connection, from the same port: one that was closed has no calls with a key.
    call = await taken(port, context(("x-api-key", "key")))
    assert (call.caller, call.refused) == ("one", None)
    await taken(port, context())


async def test_without_keys_a_caller_is_a_connection(entrance, running):
    call = await taken(Intake(Metrics(), running, entrance, ADMINISTRATOR), context(("x-api-key", "other")))
    assert (call.tenant, call.caller) == (ADMINISTRATOR, PEER)


async def test_so_many_wait_and_callers_share(port, monkeypatch):
    monkeypatch.setattr(intake, "_MOST_WAITING", 4)
    one, other = context(("x-api-key", "key")), context()
    waiting = [asyncio.create_task(taken(port, one)) for _ in range(6)]
    waiting += [asyncio.create_task(taken(port, other)) for _ in range(3)]
    found = await asyncio.gather(*waiting, return_exceptions=True)
    # The first one of all waits for nobody.
    assert [isinstance(each, Overloaded) for each in found] == [False] * 5 + [True] + [False] * 2 + [True]
    rejected = port.metrics.rejections.labels("", "calls")
    assert rejected._value.get() == 2
    assert refused(port) == {"RESOURCE_EXHAUSTED": 2}


async def test_nobody_waits_when_the_server_stops(port, running, entrance):
    await running.drain(0)
    await entrance.enter("one")
    for _ in range(3):
        waiting = port.wait(port.look(context(("x-api-key", "key"))))
        with pytest.raises(StopIteration):
            waiting.send(None)
