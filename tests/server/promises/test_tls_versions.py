"""TLS below 1.2 is refused: by the server itself, whatever a client would settle for."""

import asyncio
import contextlib
import ssl
import warnings

import pytest

from tuneserve.server.config import TlsConfig

from ..conftest import loopback

TLS = ssl.TLSVersion


def client(version: ssl.TLSVersion) -> ssl.SSLContext:
    """Speaks one version of TLS alone, with every cipher there is, and trusts anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return speaking(context, version, version)


def speaking(context: ssl.SSLContext, lowest: ssl.TLSVersion, highest: ssl.TLSVersion) -> ssl.SSLContext:
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that these versions are old is the point
        context.minimum_version, context.maximum_version = lowest, highest
    return context


async def spoken(address: str, version: ssl.TLSVersion) -> str:
    """What a client that speaks one version agrees on with a server. Raises an error of SSL or of the connection."""
    host, port = address.split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=client(version))
    agreed = writer.get_extra_info("ssl_object").version()
    writer.transport.abort()
    return agreed


@pytest.fixture
async def server(serve_config, make_bert, certified):
    key, certificate = certified
    config = loopback({"sentiment": make_bert()}, tls=TlsConfig(certificate=certificate, key=key))
    async with serve_config(config) as served:
        yield served


@pytest.mark.parametrize(("version", "name"), [(TLS.TLSv1_2, "TLSv1.2"), (TLS.TLSv1_3, "TLSv1.3")])
async def test_versions_of_today_are_spoken(server, version, name):
    assert await spoken(server.app.address, version) == name


@pytest.mark.parametrize(("version", "name"), [(TLS.TLSv1, "TLSv1"), (TLS.TLSv1_1, "TLSv1.1")])
async def test_older_ones_are_refused(server, certified, version, name):
    key, certificate = certified
    willing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    willing.load_cert_chain(certificate, key)
    speaking(willing, TLS.TLSv1, TLS.TLSv1_3)

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()  # until the client hangs up
        writer.transport.abort()

    async with await asyncio.start_server(listen, "127.0.0.1", 0, ssl=willing) as other:
        host, port = other.sockets[0].getsockname()
        assert await spoken(f"{host}:{port}", version) == name, "the client could"
    # gRPC hangs up without an alert.
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await spoken(server.app.address, version)
