"""How a server is reached: the options of every channel of the client.

gRPC itself retries calls: only if the status says that a retry may succeed and no part of an answer has been received,
after the pause that the server asks for (`grpc-retry-pushback-ms`), and never past the deadline. It also spreads calls
over the addresses of a name, or over several given addresses.
"""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

# gRPC allows no more attempts.
MOST_ATTEMPTS = 5
_RETRIED = ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
# The pauses if the server asks for none. gRPC varies each by a fifth, so that callers don't retry at the same time.
_BACKOFF = {"initialBackoff": "0.1s", "maxBackoff": "5s", "backoffMultiplier": 3}
_CHANNEL = [
    # An answer has at most 32 MiB.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # A larger request is sent only once: if it is too large for the server, a retry would be, too.
    ("grpc.per_rpc_retry_buffer_size", 1024 * 1024),
]


@dataclass(frozen=True)
class Endpoint:
    """One server, or several that serve the same models. Raises ValueError for values that can't be valid."""

    target: str | Sequence[str]  # host:port, a target as gRPC names them, or several host:port
    timeout: float = 60.0  # seconds for a whole call, its retries included
    key: str = field(default="", repr=False)  # API key; none when empty
    tls: bool = False  # implied if one of the files below is given
    ca: str | Path | None = None  # PEM; if None, the authorities that the machine trusts
    certificate: str | Path | None = None  # PEM, for a server that requires client certificates
    certificate_key: str | Path | None = None
    server_name: str = ""  # the name in the server's certificate, if it differs from the target
    attempts: int = 1  # of one call

    def __post_init__(self) -> None:
        if not self.target:
            raise ValueError("no address given")
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}: allowed are seconds above 0")
        if not self.key.isascii() or not self.key.isprintable():
            raise ValueError("key: a key has letters, digits and signs of ASCII only")
        if bool(self.certificate) != bool(self.certificate_key):
            raise ValueError("certificate and certificate_key belong together: give both")
        if not 1 <= self.attempts <= MOST_ATTEMPTS:
            raise ValueError(f"attempts is {self.attempts}: allowed are 1 to {MOST_ATTEMPTS}")
        if not isinstance(self.target, str) and len(self.target) > 1 and self.secure and not self.server_name:
            raise ValueError("several addresses with TLS need server_name, the name in the servers' certificates")

    @property
    def secure(self) -> bool:
        """Whether calls go over TLS."""
        return bool(self.tls or self.ca or self.certificate)

    @property
    def options(self) -> dict[str, Any]:
        """The options of every call."""
        return {
            "timeout": self.timeout,
            "metadata": [("authorization", f"Bearer {self.key}")] if self.key else [],
        }

    def open(self, *options: tuple[str, Any]) -> grpc.Channel:
        """Returns a channel, with further gRPC options. It connects with the first call.

        Raises OSError for files that can't be read and, with several addresses, for unknown names.
        """
        channel: grpc.Channel = self._open(grpc, options)
        return channel

    def open_async(self, *options: tuple[str, Any]) -> grpc.aio.Channel:
        """The same for asyncio; call it where the event loop runs."""
        channel: grpc.aio.Channel = self._open(grpc.aio, options)
        return channel

    def _open(self, library: Any, more: Sequence[tuple[str, Any]]) -> Any:
        target = self.target if isinstance(self.target, str) else _one(self.target)
        options = [*_CHANNEL, ("grpc.service_config", json.dumps(self._service_config())), *more]
        if not self.secure:
            return library.insecure_channel(target, options=options)
        if self.server_name:
            options += [("grpc.ssl_target_name_override", self.server_name)]
            options += [("grpc.default_authority", self.server_name)]
        files = (self.ca, self.certificate_key, self.certificate)
        contents = (Path(file).read_bytes() if file else None for file in files)
        return library.secure_channel(target, grpc.ssl_channel_credentials(*contents), options=options)

    def _service_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
        if self.attempts > 1:
            policy = {"maxAttempts": self.attempts, "retryableStatusCodes": _RETRIED, **_BACKOFF}
            # A change may have been made although its answer was lost: a retry would then report a wrong error.
            once = {"name": [{"service": "tuneserve.v1.ModelAdminService"}]}
            config["methodConfig"] = [{"name": [{}], "retryPolicy": policy}, once]
        return config


def _one(addresses: Sequence[str]) -> str:
    """Returns several addresses as one gRPC target. gRPC accepts only lists of IP addresses, so names are looked up
    here, once. Raises OSError for an unknown name.
    """
    if len(addresses) == 1:
        return addresses[0]
    found = [_looked_up(address) for address in addresses]
    for family, scheme in ((socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")):
        each = [[ip for ip in ips if ip[0] == family] for ips in found]
        if all(each):
            texts = [f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ips in each for _, ip, port in ips]
            return f"{scheme}:{','.join(dict.fromkeys(texts))}"
    raise ValueError(f"{', '.join(addresses)}: give either IPv4 or IPv6 addresses")


def _looked_up(address: str) -> list[tuple[int, str, int]]:
    """Returns family, IP address and port of each IP address of a host:port."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError(f"{address}: expected host:port")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    return [(int(family), str(place[0]), int(port)) for family, _, _, _, place in found]
