"""Connections without a key, and no server: how many calls each may make, and which file is closed then."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from tuneserve.server.transport import peers, unauthenticated
from tuneserve.server.transport.unauthenticated import UnauthenticatedConnections

CALLS, ADDRESS = unauthenticated._CONNECTION[0], unauthenticated._ADDRESS[0]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection to us, ours first."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
        with ours, theirs:
            yield ours, theirs


def peer_of(ours: socket.socket) -> str:
    host, port = ours.getpeername()
    return f"ipv4:{host}:{port}"


def at(port: int, closed=lambda: None, clock=None) -> UnauthenticatedConnections:
    found = UnauthenticatedConnections(closed, clock=clock or Clock())
    found.port = port
    return found


def peers_at(host: str, count: int) -> dict[str, peers.File]:
    return {f"ipv4:{host}:{port}": peers.File(port, port) for port in range(1, count + 1)}


def count(these: UnauthenticatedConnections) -> None:
    """As the server does from time to time."""
    to_close, these._to_close = these._to_close, set()
    these._look(peers.connected(these.port), to_close)


def test_a_connection_has_so_many_calls_and_is_closed(connected, clock):
    ours, theirs = connected
    closed: list[int] = []
    these, peer = at(ours.getsockname()[1], lambda: closed.append(1), clock), peer_of(ours)
    assert [these.may_ask(peer) for _ in range(CALLS)] == [True] * CALLS
    clock.now += 1 / unauthenticated._CONNECTION[1]
    assert these.may_ask(peer), "one more after a while"
    assert not these.may_ask(peer)
    count(these)
    assert theirs.recv(1) == b"", "it was hung up on"
    files = len(os.listdir("/proc/self/fd"))
    assert not these.may_ask(peer), "calls that were on their way"
    assert closed == [1]
    assert len(os.listdir("/proc/self/fd")) == files


def test_one_that_showed_a_key_is_never_closed(connected):
    ours, _ = connected
    these, peer = at(ours.getsockname()[1]), peer_of(ours)
    assert these.may_ask(peer)
    these.authenticated(peer)
    assert all(these.may_ask(peer) for _ in range(10 * CALLS))


def test_one_that_shows_a_key_before_it_is_closed_stays(connected):
    ours, theirs = connected
    these, peer = at(ours.getsockname()[1]), peer_of(ours)
    assert not all(these.may_ask(peer) for _ in range(CALLS + 1))
    these.authenticated(peer)
    count(these)
    ours.sendall(b"x")
    assert theirs.recv(1) == b"x"


def test_an_address_has_so_many_and_each_of_its_connections_one(clock):
    these = at(1, clock=clock)
    asked = sum(these.may_ask(f"ipv4:10.0.0.1:{port}") for port in range(100) for _ in range(20))
    spent = ADDRESS // 20
    assert asked == pytest.approx(ADDRESS + 100 - spent, abs=1)
    assert these.may_ask("ipv4:10.0.0.2:1"), "another address"
    clock.now += 60
    assert these.may_ask("ipv4:10.0.0.1:99999")
    assert these.may_ask("ipv4:10.0.0.1:99999")


def test_a_connection_is_closed_only_while_it_is_that_peer_s(connected):
    """The number of its file may be another one's by now, and connections to other ports are not ours to close."""
    ours, theirs = connected
    these, peer = at(ours.getsockname()[1]), peer_of(ours)
    assert not all(these.may_ask(peer) for _ in range(CALLS + 1))
    these._look({peer: peers.File(ours.fileno(), inode=1)}, {peer})
    elsewhere = at(1)
    assert not all(elsewhere.may_ask(peer) for _ in range(CALLS + 1))
    count(elsewhere)
    ours.sendall(b"x")
    assert theirs.recv(1) == b"x"


def test_calls_of_a_connection_that_was_closed_are_refused_until_its_port_comes_again(connected):
    ours, _ = connected
    these, peer = at(ours.getsockname()[1]), peer_of(ours)
    assert not all(these.may_ask(peer) for _ in range(CALLS + 1))
    count(these)
    count(these)
    assert not these.may_ask(peer), "gRPC has not closed its file yet"
    these._look({peer: peers.File(ours.fileno(), inode=1)})
    assert these.may_ask(peer), "another connection"


def test_who_has_not_been_looked_at_yet_is_no_stranger(clock):
    """A busy server is late to look at first calls: they may have keys."""
    these, now = at(1, clock=clock), "ipv4:10.0.0.1:1"
    these._look({now: 1, "ipv4:10.0.0.1:2": 2, "ipv4:10.0.0.1:3": 3})
    these.may_ask("ipv4:10.0.0.1:2")
    these.authenticated("ipv4:10.0.0.1:3")
    assert these.without_key() == ["ipv4:10.0.0.1:2"]
    clock.now += unauthenticated._FIRST_CALL_SECONDS
    assert these.without_key() == [now, "ipv4:10.0.0.1:2"], "it had time enough"


async def test_a_key_that_is_shown_while_connections_are_counted_counts(monkeypatch, clock):
    """Listing the files takes longer, the more there are; a stream shows its key only once."""
    these, early, late = at(1, clock=clock), "ipv4:10.0.0.1:1", "ipv4:10.0.0.1:2"
    these.authenticated(early)
    gone = "ipv4:10.0.0.1:3"
    these.authenticated(gone)

    def connected(port: int) -> dict[str, peers.File]:
        these.authenticated(late)
        return {early: peers.File(1, 1)}

    monkeypatch.setattr(peers, "connected", connected)
    await these._count()
    these._look({peer: peers.File(number, number) for number, peer in enumerate((early, late, gone))})
    clock.now += unauthenticated._FIRST_CALL_SECONDS
    assert these.without_key() == [gone]


async def test_it_goes_on_when_there_is_no_file_left(connected, monkeypatch, caplog, until):
    """The system's limit on open files is reached, and files are listed with a file."""
    monkeypatch.setattr(unauthenticated, "_SOON_SECONDS", 0.01)
    monkeypatch.setattr(unauthenticated, "_COUNT_SECONDS", 0.02)
    ours, theirs = connected
    closed: list[int] = []
    these, listed, peer = at(ours.getsockname()[1], lambda: closed.append(1)), peers.connected, peer_of(ours)
    failed: list[int] = []

    def connected_(port: int) -> dict[str, peers.File]:
        if len(failed) < 3:
            failed.append(1)
            raise OSError(errno.EMFILE, "Too many open files")
        return listed(port)

    monkeypatch.setattr(peers, "connected", connected_)
    assert not all(these.may_ask(peer) for _ in range(CALLS + 1))
    keeping = asyncio.create_task(these.keep_few())
    await until(lambda: closed)
    keeping.cancel()
    assert theirs.recv(1) == b"", "it was still to be closed"
    assert caplog.text.count("can't be limited: Too many open files") == 1


def test_connections_that_send_no_call_are_counted_too():
    these, most = at(1), unauthenticated._OPENED[0]
    for _ in range(3):
        these._look(peers_at("10.0.0.1", most) | peers_at("10.0.0.2", most + 1))
    assert these._to_ignore == {ip_network("10.0.0.2")}


async def test_an_address_is_trusted_for_a_while_after_it_showed_a_key(monkeypatch, clock):
    """Of those at an address that many share, some connect anew for each call."""
    asked: list[set[object]] = []
    monkeypatch.setattr(peers, "ignore", lambda port, networks: asked.append(set(networks)))
    monkeypatch.setattr(peers, "connected", lambda port: {})
    these = at(1, clock=clock)
    these.authenticated("ipv4:10.0.0.1:50000")
    await these._count()

    async def ignored() -> bool:
        for peer in peers_at("10.0.0.1", unauthenticated._OPENED[0] + 1):
            these._connections.pop(peer, None)
            these.may_ask(peer)
        await these._ignore()
        return bool(these.ignored)

    clock.now += unauthenticated._TRUST_SECONDS - 1
    assert not await ignored()
    clock.now += 2
    assert await ignored()
    assert asked == [{ip_network("10.0.0.1")}]


def test_a_call_that_has_ended_already_is_nobody_s():
    these = at(1)
    assert not these.may_ask("")
    assert not these._closed
