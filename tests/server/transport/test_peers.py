"""Connections as Linux knows them: found, closed, and refused before there are any."""

import socket
from ipaddress import ip_network

import pytest

from tuneserve.server.transport import peers


@pytest.mark.parametrize(
    ("listen", "host", "peer"),
    [("::", "127.0.0.1", "ipv4:127.0.0.1"), ("::1", "::1", "ipv6:%5B::1%5D")],
)
def test_a_connection_is_found_by_its_peer_and_closed(listen, host, peer):
    with socket.create_server((listen, 0), family=socket.AF_INET6, dualstack_ipv6=listen == "::") as listening:
        port = listening.getsockname()[1]
        with socket.create_connection((host, port)) as theirs:
            ours, _ = listening.accept()
            with ours:
                [(name, file)] = peers.connected(port).items()
                assert (name, file.number) == (f"{peer}:{theirs.getsockname()[1]}", ours.fileno())
                assert peers.address(name) == peer
                assert not peers.hang_up(peers.File(file.number, file.inode + 1))
                assert peers.hang_up(file)
                assert theirs.recv(1) == b""


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("ipv4:10.0.0.1", "10.0.0.1/32"),
        ("ipv6:%5B2001:db8:0:7:1:2:3:4%5D", "2001:db8:0:7::/64"),
        ("unix", None),
        ("ipv4:hello", None),
    ],
)
def test_a_network_is_what_one_subscriber_has(address, network):
    assert peers.network(address) == (network and ip_network(network))


def gets_in(source: str, listening: socket.socket) -> bool:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.socket(family) as one:
        one.bind((source, 0))
        one.settimeout(0.3)
        try:
            one.connect(("::1" if ":" in source else "127.0.0.1", listening.getsockname()[1]))
        except TimeoutError:
            return False
        one.sendall(b"x")
        ours, _ = listening.accept()
        with ours:
            return ours.recv(1) == b"x"


def test_new_connections_from_some_networks_are_dropped():
    others = [ip_network("2001:db8::/64"), *map(ip_network, range(1, 61))]
    ignored = [*others, ip_network("127.0.0.2"), ip_network("::/64")]
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)) as before:
            ours, _ = listening.accept()
            peers.ignore(port, ignored)
            assert [gets_in(one, listening) for one in ("127.0.0.1", "127.0.0.2", "::1")] == [True, False, False]
            with ours:
                before.sendall(b"x")
                assert ours.recv(1) == b"x", "connections that exist go on"
        peers.ignore(port, others)
        assert [gets_in(one, listening) for one in ("127.0.0.2", "::1")] == [True, True]
        peers.ignore(port, [])
        assert gets_in("127.0.0.2", listening)
