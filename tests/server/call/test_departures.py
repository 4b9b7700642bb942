"""Answers on their way out, by numbers alone: how much of them gRPC is given that callers have not read."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tuneserve.server.call import context
from tuneserve.server.call import departures as departures_module
from tuneserve.server.call.departures import LARGEST, Departures, check_size
from tuneserve.server.call.errors import InvalidInput, Overloaded
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.metrics import Metrics

MIB = 1 << 20


@dataclass
class Connection:
    """A call on a connection, which gRPC is through with when `done` says so."""

    address: str = "ipv4:10.0.0.1:1"
    callbacks: list[Callable[[], object]] = field(default_factory=list)

    def peer(self) -> str:
        return self.address

    def done(self) -> None:
        for callback in self.callbacks:
            callback()


def by(tenant: str) -> None:
    """The call that is being answered is this tenant's."""
    context.begin(context.Call("req-1", "Generate", Tenant(tenant), {}, Metrics()))


@pytest.fixture(autouse=True)
def acme(monkeypatch: pytest.MonkeyPatch) -> None:
    by("acme")
    monkeypatch.setattr(departures_module, "_when_done", lambda connection, work: connection.callbacks.append(work))


def test_an_answer_counts_until_grpc_is_through_with_it():
    departures, first, second = Departures(), Connection(), Connection()
    departures.until_done(MIB, first)
    departures.until_done(0, second)
    assert departures.shares.bytes > MIB, "an empty one has bytes before it, too"
    first.done()
    assert 0 < departures.shares.bytes < 100
    assert not departures.shares.none.is_set()
    second.done()
    assert departures.shares.bytes == 0
    assert departures.shares.none.is_set()


def test_who_leaves_much_unread_is_given_no_more():
    rejected: list[None] = []
    departures, connection = Departures(lambda: rejected.append(None)), Connection()
    departures.check(connection)
    departures.until_done(LARGEST, connection)
    with pytest.raises(Overloaded) as caught:
        departures.check(Connection())
    assert caught.value.reason == "UNREAD"
    with pytest.raises(Overloaded):
        departures.until_done(1, Connection())
    assert len(rejected) == 2
    # Another connection, and another tenant behind the same proxy.
    departures.until_done(LARGEST, Connection("ipv4:10.0.0.1:2"))
    by("other")
    departures.until_done(LARGEST, Connection())
    connection.done()
    by("acme")
    departures.until_done(LARGEST, Connection())


def test_all_callers_together_leave_so_much():
    departures, connections = Departures(), [Connection(f"ipv4:10.0.0.1:{port}") for port in range(9)]
    for connection in connections[:8]:
        departures.until_done(LARGEST - 100, connection)
    with pytest.raises(Overloaded):
        departures.until_done(2 * MIB, connections[8])
    departures.until_done(MIB - 100, connections[8])


def test_an_answer_that_is_too_large_is_said_to_be():
    departures, connection = Departures(), Connection()
    check_size(LARGEST)
    with pytest.raises(InvalidInput, match=rf"answer of {LARGEST + 1} bytes; allowed: {LARGEST}; ask for less"):
        departures.until_done(LARGEST + 1, connection)
    assert departures.shares.bytes == 0
    assert not connection.callbacks
