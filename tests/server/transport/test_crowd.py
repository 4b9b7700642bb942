"""Calls of closed connections are left out where many calls come at once; all others are begun, in their order."""

import asyncio
import threading

import pytest

from tuneserve.server.transport import crowd, peers
from tuneserve.server.transport.crowd import Crowd

OPEN, CLOSED = "ipv4:10.0.0.1:1", "ipv6:%5B::1%5D:2"
# Names that Linux does not have like this.
OTHERS = ["unix:/run/socket", "ipv6:%5Bfe80::1%25eth0%5D:3"]


class Port:
    """A crowd, and what became of its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found=None) -> None:
        self.begun, self.left_out, self.listings = list[int](), list[str](), 0
        self.crowd = Crowd(self.begun.append, self.left_out.append)
        self.crowd.port = 1

        def connected(port: int) -> dict[str, peers.File]:
            self.listings += 1
            if isinstance(found, Exception):
                raise found
            return {OPEN: peers.File(1, 1)}

        monkeypatch.setattr(peers, "connected", connected)

    def come(self, *of: str, many: int = crowd._MANY) -> None:
        """First so many that it is a crowd, then one call of each peer."""
        for number in range(many):
            assert not self.crowd.takes(OPEN, number)
        for number, peer in enumerate(of):
            assert self.crowd.takes(peer, number)


async def test_few_calls_go_on_at_once(monkeypatch):
    port = Port(monkeypatch)
    port.come()
    await asyncio.sleep(2 * crowd._SECONDS)
    port.come()
    assert (port.listings, port.begun) == (0, [])


async def test_those_of_closed_connections_are_left_out(monkeypatch, until):
    port = Port(monkeypatch)
    port.come(OPEN, CLOSED, *OTHERS, CLOSED, OPEN)
    await until(lambda: len(port.begun) == 4)
    assert (port.begun, port.left_out, port.listings) == ([0, 2, 3, 5], [CLOSED] * 2, 1)
    # The next ones, once that is over.
    await until(lambda: port.crowd._sorting is None)
    await asyncio.sleep(crowd._SECONDS)
    assert not port.crowd.takes(OPEN, 0)


async def test_who_comes_meanwhile_waits_for_the_next_listing(monkeypatch, until):
    port = Port(monkeypatch)
    port.come(OPEN)
    await asyncio.sleep(0)
    assert port.crowd.takes(OPEN, 1), "the count says so still"
    await until(lambda: len(port.begun) == 2)
    assert port.begun == [0, 1]


@pytest.mark.parametrize("error", [OSError("no file left"), RuntimeError("can't start new thread")])
async def test_where_connections_can_not_be_listed_all_are_begun(monkeypatch, until, error):
    port = Port(monkeypatch, error)
    port.come(OPEN, CLOSED)
    await until(lambda: len(port.begun) == 2)
    assert not port.left_out


async def test_before_the_port_is_known_all_are_begun(monkeypatch, until):
    port = Port(monkeypatch)
    port.crowd.port = 0
    port.come(CLOSED)
    await until(lambda: port.begun == [0])
    assert port.listings == 0


async def test_memory_is_given_back_after_many(monkeypatch, until):
    given_back = list[int]()
    monkeypatch.setattr(crowd, "_MUCH", 3)
    monkeypatch.setattr(crowd, "_give_back", lambda: given_back.append(1))
    port = Port(monkeypatch)
    port.come(*[CLOSED] * 3)
    await until(lambda: port.crowd._sorting is None)
    assert not given_back
    await asyncio.sleep(crowd._SECONDS)
    port.come(*[CLOSED] * 4)
    await until(lambda: given_back == [1])


async def test_who_comes_while_memory_is_given_back_does_not_wait_for_others(monkeypatch, until):
    giving_back, may_end = threading.Event(), threading.Event()

    def give_back() -> None:
        giving_back.set()
        may_end.wait(10)

    monkeypatch.setattr(crowd, "_MUCH", 3)
    monkeypatch.setattr(crowd, "_give_back", give_back)
    port = Port(monkeypatch)
    port.come(*[CLOSED] * 4)
    await until(giving_back.is_set)
    taken = port.crowd.takes(OPEN, 99)
    may_end.set()
    await until(lambda: not taken or 99 in port.begun)
