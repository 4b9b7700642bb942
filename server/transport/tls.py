"""TLS for the gRPC port: certificate, key and client CA from PEM files that are read again when they change.

gRPC asks at every new connection, before the handshake; connections that are open stay as they are. A new file that
is missing or wrong, or a certificate whose key is not written yet, leaves the old ones in force.

Keys may be RSA, P-256 or P-384: gRPC's own TLS library speaks no Ed25519 or P-521, and that is not checked here.
"""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc

from tuneserve import regular
from tuneserve.errors import UserError
from tuneserve.server.config import TlsConfig
from tuneserve.server.files import stamp

logger = logging.getLogger(__name__)

# A system's whole list of authorities is a tenth of it.
_MOST_BYTES = 4 << 20


def credentials(config: TlsConfig) -> grpc.ServerCredentials:
    """Returns the credentials of one port; each port needs its own. With `client_ca`, clients need a certificate.

    Raises UserError naming the key.
    """
    files = _Files(config)
    return grpc.dynamic_ssl_server_credentials(
        files.read(str),
        files.read_if_changed,  # type: ignore[arg-type]  # its None, for no change, is missing in the stubs
        require_client_authentication=config.client_ca is not None,
    )


class _Files:
    """The files of a config, and which state of them was read last."""

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._seen: object = None

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what is new, or None. Called by gRPC, in a thread of its own, one call at a time."""
        if self._stamps() == self._seen:
            return None
        try:
            # A log names files without their directories.
            configuration = self.read(lambda path: path.name)
        except UserError as error:
            logger.error("TLS files not reloaded, the old ones stay: %s", error)
            return None
        logger.info("TLS files reloaded")
        return configuration

    def read(self, shown: Callable[[Path], str]) -> grpc.ServerCertificateConfiguration:
        """Returns what the files hold. Raises UserError naming the key; `shown` is how a file is named."""
        # Before the files are read: what is written meanwhile is seen next time.
        self._seen = self._stamps()
        config = self._config
        certificate = _certificates(config.certificate, "tls.certificate", shown)
        key = _key(config, shown)
        client_ca = _certificates(config.client_ca, "tls.client_ca", shown) if config.client_ca else None
        if self._stamps() != self._seen:
            # What was checked may not be what was read.
            self._seen = None
            raise UserError("tls: the files changed while they were read")
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)

    def _stamps(self) -> object:
        return [stamp(path) for path in (self._config.certificate, self._config.key, self._config.client_ca) if path]


def _certificates(path: Path, name: str, shown: Callable[[Path], str]) -> bytes:
    """Returns the PEM text of one certificate or more."""
    try:
        text = regular.read(path, _MOST_BYTES)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise UserError(f"{name}: {shown(path)}: not PEM certificates, or one of them is damaged") from None
    except OSError as error:
        raise UserError(f"{name}: {shown(path)}: can't be read: {error.strerror}") from None
    return text


def _key(config: TlsConfig, shown: Callable[[Path], str]) -> bytes:
    """Returns the PEM text of the key of a certificate that was checked already."""
    where = f"tls.key: {shown(config.key)}"
    try:
        text = regular.read(config.key, _MOST_BYTES)
        # Without a password from us, OpenSSL would ask for that of an encrypted key at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.certificate, config.key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = "not the key of tls.certificate, whose own certificate comes first in its file"
        else:
            reason = "not a PEM key without a password"
        raise UserError(f"{where}: {reason}") from None
    except OSError as error:
        raise UserError(f"{where}: can't be read: {error.strerror}") from None
    return text
