"""TLS over a real wire: who gets in, which certificate is shown, and what a change of the files does."""

import asyncio
import datetime
import ipaddress
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneserve.errors import UserError
from tuneserve.machine import regular
from tuneserve.server.app import App
from tuneserve.server.call.tenants import hashed
from tuneserve.server.config import TlsConfig
from tuneserve.server.transport.tls import credentials
from tuneserve.v1 import model_pb2, model_pb2_grpc

from ..conftest import loopback

PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: bytes
    key: bytes
    serial: int

    def locked(self) -> bytes:
        """The key under a password."""
        key = serialization.load_pem_private_key(self.key, None)
        return key.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"password")
        )


class Authority:
    """A CA of the test's own."""

    def __init__(self, name: str) -> None:
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(self._name, self._key, x509.BasicConstraints(True, None), 1).public_bytes(PEM)

    def issue(self, days: int = 1, *more: x509.GeneralName) -> Pair:
        """A certificate for this machine, or of one of its clients; expired for a negative number of days."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *more]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        certificate = self._sign(subject, key, x509.SubjectAlternativeName(names), days)
        text = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return Pair(certificate.public_bytes(PEM), text, certificate.serial_number)

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType, days: int
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=10))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self._key, hashes.SHA256())
        )


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("ours")


@pytest.fixture(scope="module")
def stranger() -> Authority:
    return Authority("a stranger's")


@dataclass
class Files:
    """The server's files."""

    directory: Path

    def write(self, pair: Pair, client_ca: bytes | None = None) -> None:
        """Writes what is given, each file whole."""
        given = {"certificate.pem": pair.certificate, "key.pem": pair.key, "ca.pem": client_ca}
        for name, content in given.items():
            if content is not None:
                self.put(name, content)

    def put(self, name: str, content: bytes) -> None:
        """Replaces one file, as careful programs do."""
        (self.directory / "new").write_bytes(content)
        (self.directory / "new").replace(self.directory / name)

    def config(self, mutual: bool = False) -> TlsConfig:
        return TlsConfig(
            certificate=self.directory / "certificate.pem",
            key=self.directory / "key.pem",
            client_ca=self.directory / "ca.pem" if mutual else None,
        )


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def serving(config: TlsConfig, expires: Callable[[float], None] = lambda when: None) -> AsyncIterator[str]:
    """A server that echoes; gives its address."""

    async def echo(request: bytes, context: object) -> bytes:
        return request

    server = grpc.aio.server()
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_secure_port("127.0.0.1:0", credentials(config, expires))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def connect(address: str, roots: bytes, own: Pair | None = None) -> grpc.aio.Channel:
    """A channel with a connection of its own: gRPC shares them between channels that look alike."""
    pair = (own.key, own.certificate) if own else (None, None)
    return grpc.aio.secure_channel(
        address, grpc.ssl_channel_credentials(roots, *pair), options=[("grpc.use_local_subchannel_pool", 1)]
    )


async def echo(channel: grpc.aio.Channel) -> bool:
    """Whether a call is answered. False when there is no connection; anything else fails the test."""
    try:
        return await channel.unary_unary("/test.Test/Echo")(b"hello", timeout=20) == b"hello"
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.UNAVAILABLE:
            raise
        return False


async def lets_in(address: str, roots: bytes, own: Pair | None = None) -> bool:
    """Whether a new connection is made and answered."""
    async with connect(address, roots, own) as channel:
        return await echo(channel)


async def shown(address: str, roots: bytes) -> int:
    """The serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cadata=roots.decode())
    context.set_alpn_protocols(["h2"])
    host, port = address.split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()  # gRPC would go on talking
    return x509.load_der_x509_certificate(certificate).serial_number


async def test_who_gets_in_with_tls(files, authority, stranger):
    files.write(authority.issue())
    async with serving(files.config()) as address:
        assert await lets_in(address, authority.certificate)
        assert not await lets_in(address, stranger.certificate), "a client knows a server that is not the right one"
        async with grpc.aio.insecure_channel(address) as channel:
            assert not await echo(channel), "plaintext"


async def test_who_gets_in_with_mutual_tls(files, authority, stranger):
    files.write(authority.issue(), client_ca=authority.certificate)
    async with serving(files.config(mutual=True)) as address:
        assert await lets_in(address, authority.certificate, authority.issue())
        for own, why in [
            (None, "no certificate"),
            (stranger.issue(), "wrong CA"),
            (Authority("ours").issue(), "a CA of the same name"),
            (authority.issue(days=-1), "expired"),
        ]:
            assert not await lets_in(address, authority.certificate, own), why


async def test_a_new_certificate_is_shown_without_a_restart(files, authority):
    first, second = authority.issue(), authority.issue()
    files.write(first)
    async with serving(files.config()) as address, connect(address, authority.certificate) as before:
        assert await shown(address, authority.certificate) == first.serial
        assert await echo(before)
        files.write(second)
        assert await shown(address, authority.certificate) == second.serial
        assert await lets_in(address, authority.certificate)
        assert await echo(before), "open connections go on"


async def test_when_the_certificate_expires_is_known(files, authority):
    first, second = authority.issue(), authority.issue(days=40 * 365)
    told: list[float] = []
    files.write(first)
    async with serving(files.config(), told.append) as address:
        assert await shown(address, authority.certificate) == first.serial
        # With the chain behind it, and text before it.
        files.write(second)
        files.put("certificate.pem", b"subject=localhost\n" + second.certificate + authority.certificate)
        assert await shown(address, authority.certificate) == second.serial
    expected = [x509.load_pem_x509_certificate(pair.certificate).not_valid_after_utc for pair in (first, second)]
    assert list(dict.fromkeys(told)) == [when.timestamp() for when in expected]


async def test_a_certificate_of_another_authority(files, authority, stranger):
    files.write(authority.issue())
    async with serving(files.config()) as address:
        assert await lets_in(address, authority.certificate)
        files.write(stranger.issue())
        assert await lets_in(address, stranger.certificate)
        assert not await lets_in(address, authority.certificate)


async def test_a_new_client_ca(files, authority, stranger):
    files.write(authority.issue(), client_ca=authority.certificate)
    old, new = authority.issue(), stranger.issue()
    async with serving(files.config(mutual=True)) as address:

        async def who() -> tuple[bool, bool]:
            return (
                await lets_in(address, authority.certificate, old),
                await lets_in(address, authority.certificate, new),
            )

        assert await who() == (True, False)
        files.put("ca.pem", authority.certificate + stranger.certificate)
        assert await who() == (True, True)
        files.put("ca.pem", stranger.certificate)
        assert await who() == (False, True)


async def test_a_certificate_waits_for_its_key(files, authority, caplog):
    caplog.set_level(logging.INFO)
    first, second = authority.issue(), authority.issue()
    files.write(first)
    async with serving(files.config()) as address:
        files.put("certificate.pem", second.certificate)
        for _ in range(3):
            assert await shown(address, authority.certificate) == first.serial
        files.put("key.pem", second.key)
        assert await shown(address, authority.certificate) == second.serial
    assert [record.levelname for record in caplog.records if record.name.endswith(".tls")] == ["ERROR", "INFO"]
    assert "tls.key: key.pem: not the key of tls.certificate" in caplog.text


@pytest.mark.parametrize("name", ["certificate.pem", "key.pem", "ca.pem"])
@pytest.mark.parametrize(
    "content", [None, b"", b"junk", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"]
)
async def test_a_broken_file_keeps_the_old_ones_and_is_logged_once(files, authority, stranger, caplog, name, content):
    first, client = authority.issue(), authority.issue()
    files.write(first, client_ca=authority.certificate)
    async with serving(files.config(mutual=True)) as address:
        if content is None:
            (files.directory / name).unlink()
        else:
            files.put(name, content)
        for _ in range(3):
            assert await lets_in(address, authority.certificate, client)
            assert not await lets_in(address, authority.certificate, stranger.issue())
        (record,) = [record for record in caplog.records if record.name.endswith(".tls")]
        assert record.levelname == "ERROR"
        key = {"certificate.pem": "tls.certificate", "key.pem": "tls.key", "ca.pem": "tls.client_ca"}[name]
        assert f"the old ones stay: {key}: {name}: " in record.message
        assert str(files.directory) not in caplog.text
        files.write(stranger.issue(), client_ca=authority.certificate)
        assert await lets_in(address, stranger.certificate, client), "mended"


async def test_kubernetes_swaps_a_link_to_a_directory(tmp_path, authority):
    pairs = {"one": authority.issue(), "two": authority.issue()}
    for name, pair in pairs.items():
        (tmp_path / name).mkdir()
        Files(tmp_path / name).write(pair)
        for path in (tmp_path / name).iterdir():
            os.utime(path, ns=(0, 0))
    (tmp_path / "..data").symlink_to("one")
    for name in ("certificate.pem", "key.pem"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    async with serving(Files(tmp_path).config()) as address:
        assert await shown(address, authority.certificate) == pairs["one"].serial
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").replace(tmp_path / "..data")
        assert await shown(address, authority.certificate) == pairs["two"].serial


async def test_many_connections_while_the_files_change(files, authority):
    pairs = [authority.issue(), authority.issue()]
    files.write(pairs[0])
    async with serving(files.config()) as address:
        for turn in range(10):
            arriving = [asyncio.create_task(shown(address, authority.certificate)) for _ in range(10)]
            files.write(pairs[turn % 2])
            assert set(await asyncio.gather(*arriving)) <= {pair.serial for pair in pairs}
        assert await shown(address, authority.certificate) == pairs[1].serial


async def test_each_port_has_credentials_of_its_own(files, authority):
    files.write(authority.issue())
    async with serving(files.config()) as one, serving(files.config()) as other:
        files.write(authority.issue())
        assert await lets_in(one, authority.certificate)
        assert await shown(one, authority.certificate) == await shown(other, authority.certificate)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("certificate.pem", None, "tls.certificate: .*certificate.pem: can't be read: No such file"),
        ("certificate.pem", b"", "tls.certificate: .*certificate.pem: not PEM certificates"),
        ("certificate.pem", "key", "tls.certificate: .*certificate.pem: not PEM certificates"),
        ("key.pem", None, "tls.key: .*key.pem: can't be read: No such file"),
        ("key.pem", b"junk", "tls.key: .*key.pem: not a PEM key without a password"),
        ("key.pem", "locked", "tls.key: .*key.pem: not a PEM key without a password"),
        ("key.pem", "other", "tls.key: .*key.pem: not the key of tls.certificate"),
        ("ca.pem", None, "tls.client_ca: .*ca.pem: can't be read: No such file"),
        ("ca.pem", b"junk", "tls.client_ca: .*ca.pem: not PEM certificates"),
        ("ca.pem", "key", "tls.client_ca: .*ca.pem: not PEM certificates"),
    ],
)
def test_bad_files_at_the_start_name_the_key(files, authority, name, content, message):
    pair = authority.issue()
    files.write(pair, client_ca=authority.certificate)
    if content is None:
        (files.directory / name).unlink()
    else:
        made = {"key": pair.key, "locked": pair.locked(), "other": authority.issue().key}
        files.put(name, made.get(content, content))
    with pytest.raises(UserError, match=message) as caught:
        credentials(files.config(mutual=True), pytest.fail)
    assert "PRIVATE" not in str(caught.value)


@pytest.mark.parametrize("name", ["certificate.pem", "key.pem", "ca.pem"])
def test_a_pipe_holds_nothing_up(files, authority, name):
    """gRPC asks for the files at each new connection, and waits."""
    files.write(authority.issue(), client_ca=authority.certificate)
    (files.directory / name).unlink()
    os.mkfifo(files.directory / name)
    with pytest.raises(UserError, match="can't be read: not a regular file"):
        credentials(files.config(mutual=True), pytest.fail)


def test_files_that_change_while_they_are_read_are_not_taken(files, authority, monkeypatch):
    """Otherwise the pair that was checked need not be the pair that is used."""
    files.write(authority.issue())
    read = regular.read

    def read_and_change(path: Path, most: int) -> bytes:
        text = read(path, most)
        files.put(path.name, text + b"\n")
        return text

    monkeypatch.setattr(regular, "read", read_and_change)
    with pytest.raises(UserError, match="changed while they were read"):
        credentials(files.config(), pytest.fail)


async def test_the_ports_of_a_server_with_mutual_tls(files, authority, make_bert, serve_config, tmp_path):
    """Its health, for probes that have no certificate, and its administration are on ports of their own."""
    files.write(authority.issue(), client_ca=authority.certificate)
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(f"tenants: {{a: {{keys: ['{hashed('key')}']}}}}")
    config = loopback(
        {"sentiment": make_bert()},
        health_listen="127.0.0.1:0",
        tls=files.config(mutual=True),
        tenants=tenants,
        drain_seconds=5,
    )

    def check(channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryCall:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)

    def names(channel: grpc.aio.Channel, *metadata: tuple[str, str]) -> grpc.aio.UnaryUnaryCall:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        return stub.ListModels(model_pb2.ListModelsRequest(), metadata=metadata, timeout=20)

    async with serve_config(config) as served:
        async with grpc.aio.insecure_channel(served.app.health_address) as probe:
            assert (await check(probe)).status == health_pb2.HealthCheckResponse.SERVING
            assert await names(probe).code() == grpc.StatusCode.UNIMPLEMENTED, "health alone"
        assert len((await names(served.admin)).models) == 1
        assert await check(served.channel).code() == grpc.StatusCode.UNAVAILABLE, "plaintext where TLS is spoken"
        address, roots = served.app.address, authority.certificate
        async with connect(address, roots) as channel:
            assert await check(channel).code() == grpc.StatusCode.UNAVAILABLE, "no certificate"
        async with connect(address, roots, authority.issue()) as channel:
            assert (await check(channel)).status == health_pb2.HealthCheckResponse.SERVING
            assert await names(channel).code() == grpc.StatusCode.UNAUTHENTICATED, "a certificate is no key"
            assert len((await names(channel, ("x-api-key", "key"))).models) == 1
        files.write(authority.issue(), client_ca=Authority("another").certificate)
        async with connect(address, roots, authority.issue()) as channel:
            assert await check(channel).code() == grpc.StatusCode.UNAVAILABLE, "reloaded"


async def test_a_certificate_names_a_tenant(files, authority, stranger, make_bert, serve_config, tmp_path):
    files.write(authority.issue(), client_ca=authority.certificate)
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(
        f"tenants: {{web: {{certificates: [web.example.org]}}, job: {{certificates: ['spiffe://example.org/job'], "
        f"models: []}}, key: {{keys: ['{hashed('key')}']}}}}"
    )
    config = loopback({"sentiment": make_bert()}, tls=files.config(mutual=True), tenants=tenants, drain_seconds=5)

    async def models(own: Pair, *metadata: tuple[str, str]) -> int | grpc.StatusCode:
        """How many models the owner of a certificate may use, or why it is not let in."""
        async with connect(served.app.address, authority.certificate, own) as channel:
            stub = model_pb2_grpc.ModelServiceStub(channel)
            call = stub.ListModels(model_pb2.ListModelsRequest(), metadata=metadata, timeout=20)
            code = await call.code()
            return len((await call).models) if code == grpc.StatusCode.OK else code

    web, job = x509.DNSName("web.example.org"), x509.UniformResourceIdentifier("spiffe://example.org/job")
    async with serve_config(config) as served:
        assert await models(authority.issue(1, web)) == 1
        assert await models(authority.issue(1, job)) == 0
        assert await models(authority.issue(1, job), ("x-api-key", "key")) == 1, "a key goes first"
        assert await models(authority.issue(1, web), ("x-api-key", "wrong")) == grpc.StatusCode.UNAUTHENTICATED
        assert await models(authority.issue()) == grpc.StatusCode.UNAUTHENTICATED
        assert await models(authority.issue(1, web, job)) == grpc.StatusCode.UNAUTHENTICATED, "two tenants"
        assert await models(stranger.issue(1, web)) == grpc.StatusCode.UNAVAILABLE, "another authority's"
    for tls in (None, files.config()):
        with pytest.raises(UserError, match="tenants: some have `certificates`, which need tls"):
            App(config.model_copy(update={"tls": tls}))


async def test_bad_files_are_refused_before_a_server_starts(files, authority, make_bert):
    files.write(authority.issue())
    files.put("key.pem", authority.issue().key)
    config = loopback({"sentiment": make_bert()}, tls=files.config())
    with pytest.raises(UserError, match=r"tls.key: .*key.pem: not the key of tls.certificate"):
        App(config)
