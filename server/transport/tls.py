"""TLS for the gRPC port: certificate, key and client CA from PEM files that are read again when they change.

gRPC asks for them at every new connection, before the handshake; open connections are not affected. If a new file is
missing or invalid, or a certificate's new key is not written yet, the old files stay in force.

Keys may be RSA, P-256 or P-384: gRPC's own TLS library supports neither Ed25519 nor P-521. That is not checked here.
"""

import datetime
import logging
import re
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc

from tuneserve.errors import UserError
from tuneserve.machine import regular
from tuneserve.server.config import TlsConfig
from tuneserve.server.files import stamp

logger = logging.getLogger(__name__)

# A system's whole CA bundle is a tenth of this.
_MOST_BYTES = 4 << 20
# The validity in a certificate's DER: a SEQUENCE of two times, each a UTCTime or, from 2050 on, a GeneralizedTime
# (RFC 5280, 4.1.2.5). The standard library reads it only out of certificates of CAs.
_TIME = rb"(?:\x17\x0d\d{12}Z|\x18\x0f\d{14}Z)"
_VALIDITY = re.compile(rb"\x30." + _TIME + rb"(" + _TIME + rb")", re.DOTALL)


def credentials(config: TlsConfig, expires: Callable[[float], None]) -> grpc.ServerCredentials:
    """Returns the credentials of one port; each port needs its own. With `client_ca`, clients need a certificate.
    `expires` is told when the certificate expires, as seconds since 1970, and again when it has changed.

    Raises UserError naming the key.
    """
    files = _Files(config, expires)
    return grpc.dynamic_ssl_server_credentials(
        files.read(str),
        files.read_if_changed,  # type: ignore[arg-type]  # its None, for no change, is missing in the stubs
        require_client_authentication=config.client_ca is not None,
    )


class _Files:
    """The files of a config, and the state in which they were last read."""

    def __init__(self, config: TlsConfig, expires: Callable[[float], None]) -> None:
        self._config = config
        self._expires = expires
        self._seen: object = None

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the new configuration, or None if unchanged. gRPC calls it in a thread, one call at a time."""
        if self._stamps() == self._seen:
            return None
        try:
            # Logs name files without their directories.
            configuration = self.read(lambda path: path.name)
        except UserError as error:
            logger.error("TLS files not reloaded, the old ones stay: %s", error)
            return None
        logger.info("TLS files reloaded")
        return configuration

    def read(self, shown: Callable[[Path], str]) -> grpc.ServerCertificateConfiguration:
        """Reads the files. Raises UserError naming the key; `shown` makes the name of a file in an error."""
        # Set before the files are read, so that a change made meanwhile is seen next time.
        self._seen = self._stamps()
        config = self._config
        certificate = _certificates(config.certificate, "tls.certificate", shown)
        key = _key(config, shown)
        client_ca = _certificates(config.client_ca, "tls.client_ca", shown) if config.client_ca else None
        if self._stamps() != self._seen:
            # The files that were checked may not be the ones that were read.
            self._seen = None
            raise UserError("tls: the files changed while they were read")
        self._expires(_expiry(certificate))
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)

    def _stamps(self) -> object:
        return [stamp(path) for path in (self._config.certificate, self._config.key, self._config.client_ca) if path]


def _certificates(path: Path, name: str, shown: Callable[[Path], str]) -> bytes:
    """Returns the PEM text of one or more certificates."""
    try:
        text = regular.read(path, _MOST_BYTES)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise UserError(f"{name}: {shown(path)}: not PEM certificates, or one of them is damaged") from None
    except OSError as error:
        raise UserError(f"{name}: {shown(path)}: can't be read: {error.strerror}") from None
    return text


def _expiry(certificates: bytes) -> float:
    """Returns when the first of these certificates expires, in seconds since 1970; 0 if it does not say."""
    first, end, _ = certificates.decode("ascii", "replace").partition(ssl.PEM_FOOTER)
    found = _VALIDITY.search(ssl.PEM_cert_to_DER_cert(first[first.index(ssl.PEM_HEADER) :] + end))
    if not found:
        return 0.0
    time = found[1][2:].decode()
    format = "%y%m%d%H%M%SZ" if len(time) == len("yymmddhhmmssZ") else "%Y%m%d%H%M%SZ"
    return datetime.datetime.strptime(time, format).replace(tzinfo=datetime.UTC).timestamp()


def _key(config: TlsConfig, shown: Callable[[Path], str]) -> bytes:
    """Returns the PEM text of the key; its certificate was checked before."""
    where = f"tls.key: {shown(config.key)}"
    try:
        text = regular.read(config.key, _MOST_BYTES)
        # Without a password argument, OpenSSL would ask for an encrypted key's password at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.certificate, config.key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = "not the key of tls.certificate; it must match the first certificate in that file"
        else:
            reason = "not a PEM key without a password"
        raise UserError(f"{where}: {reason}") from None
    except OSError as error:
        raise UserError(f"{where}: can't be read: {error.strerror}") from None
    return text
