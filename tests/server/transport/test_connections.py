"""Sockets, and what a connection may cost: addresses as they are bound, files that are kept back, gRPC's own limits."""

import resource
import socket

import grpc
import pytest

from tuneserve.errors import UserError
from tuneserve.server.app import App
from tuneserve.server.config import ServerConfig
from tuneserve.server.transport import connections
from tuneserve.v1 import model_pb2
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..conftest import loopback


@pytest.fixture
def config(make_llama) -> ServerConfig:
    return loopback({"chat": make_llama()})


async def test_a_port_that_is_taken_at_one_of_its_addresses(config):
    """localhost is two addresses, and gRPC is content with one of them."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for key in ("listen", "metrics_listen", "health_listen", "admin_listen"):
            with pytest.raises(UserError, match=f"{key}: can't bind localhost:{port}"):
                App(config.model_copy(update={key: f"localhost:{port}"}))


async def test_an_address_of_ipv6_keeps_its_brackets(config, serve_config):
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with serve_config(config.model_copy(update={"listen": "[::1]:0", "metrics_listen": "[::1]:0"})) as server:
        assert server.app.address.startswith("[::1]:")
        assert server.app.metrics_address.startswith("[::1]:")
        await ModelServiceStub(server.channel).ListModels(model_pb2.ListModelsRequest())


def test_an_address_that_is_nowhere():
    for address in ("no-such-host.invalid:80", "192.0.2.1:80"):
        with pytest.raises(UserError, match=r"listen: can't bind"):
            connections.sockets(address, "listen")


def test_files_are_kept_back(monkeypatch, caplog):
    monkeypatch.setattr(connections.resource, "setrlimit", lambda *_: None)
    for files, wanted, allowed in ((1024, 1024, 768), (256, 1024, 128), (256, 100, 100), (-1, 5000, 5000)):
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _, files=files: (files, files))
        assert connections.within_files(wanted) == allowed
    assert "max_connections: 768, as the process may have 1024 files open" in caplog.text


@pytest.mark.parametrize(("gib", "streams", "allowed"), [(24, 256, 1024), (3, 256, 204), (3, 32, 1024), (0, 256, 1)])
def test_the_calls_of_all_connections_fit_into_a_quarter_of_the_memory(monkeypatch, caplog, gib, streams, allowed):
    monkeypatch.setattr(connections.hardware, "memory", lambda: gib << 30)
    assert connections.within_memory(1024, streams) == allowed
    assert connections.within_memory(allowed, streams) == allowed
    told = f"max_connections: {allowed}, as 1024 with {streams} calls each (max_streams) may take 3.8 of {gib}.0 GiB"
    assert caplog.messages == ([told] if allowed < 1024 else [])


def test_a_socket_for_each_address_of_a_name():
    bound = connections.sockets("localhost:0", "listen")
    try:
        names = {one.getsockname()[0] for one in bound}
        assert names <= {"127.0.0.1", "::1"}
        assert len({one.getsockname()[1] for one in bound}) == 1, "of one port"
        assert "127.0.0.1" in names
        for one in bound:
            if one.family == socket.AF_INET6:
                assert one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    finally:
        for one in bound:
            one.close()


def test_a_port_in_use_is_named_and_leaves_no_socket_open():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"admin_listen: can't bind {address}") as caught:
            connections.sockets(address, "admin_listen")
    assert "another program has the port" in caught.value.hint
    [again] = connections.sockets(address, "admin_listen")
    again.close()


def test_a_port_is_shared_only_among_those_that_say_so():
    [first] = connections.sockets("127.0.0.1:0", "listen", shared=True)
    address = f"127.0.0.1:{first.getsockname()[1]}"
    [second] = connections.sockets(address, "listen", shared=True)
    with first, second:
        first.listen()
        second.listen()
        with pytest.raises(UserError, match="listen: can't bind"):
            connections.sockets(address, "listen")


def test_addresses_are_shown_as_they_are_written():
    assert connections.shown("127.0.0.1", 80) == "127.0.0.1:80"
    assert connections.shown("::1", 80) == "[::1]:80"


def test_the_process_may_open_more_files_where_the_system_lets_it(monkeypatch):
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: given.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1 << 20))
    assert connections.within_files(5000) == 5000
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 17, 1 << 20))
    assert connections.within_files(5000) == 5000
    assert given == [(1 << 16, 1 << 20)], "never fewer"


def test_limits_that_the_settings_give(config):
    given = {"max_streams": 7, "keepalive_seconds": 1.5, "max_connection_age_seconds": 60}
    found = dict(connections.options(config.model_copy(update=given), 33))
    assert found["grpc.max_concurrent_streams"] == 7
    assert found["grpc.keepalive_time_ms"] == 1500
    assert found["grpc.max_connection_age_ms"] == 60_000
    assert found["grpc.max_allowed_incoming_connections"] == 33
    assert found["grpc.so_reuseport"] == 0


async def test_a_message_of_more_than_four_mib_is_refused(served):
    """gRPC itself refuses it, before anything of ours sees it."""
    stub = ModelServiceStub(served.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListModels(model_pb2.ListModelsRequest(page_token="x" * (4 << 20)))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
