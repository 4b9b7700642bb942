"""Connections to the ports: the sockets of an address, the number of connections, and gRPC's limits for each."""

import errno
import logging
import resource
import socket

from tuneserve.errors import UserError
from tuneserve.server.call.departures import LARGEST
from tuneserve.server.config import ServerConfig, host_and_port
from tuneserve.server.engine import hardware

logger = logging.getLogger(__name__)

_MIB = 1 << 20
# Connections of the admin and health ports: few, but always available, so that probes and administrators get in.
MOST_BESIDE = 64
# A probe makes its call at once. Connections of the health port that make none would keep probes out: it has no keys.
PROBE_SECONDS = 5.0
# For the handshake of a connection, TLS and HTTP/2.
_UNREQUESTED_SECONDS = 10
_HANDSHAKE_SECONDS = 10.0
# For the answer to a ping.
_PING_SECONDS = 20.0
# The shortest allowed interval between a client's pings.
_PINGS_EVERY_SECONDS = 5.0
_METADATA = 4096
# What gRPC takes for a call before our code sees it, and the share of the memory that all of them may take.
_CALL_BYTES, _CALLS_SHARE = 15 << 10, 4
# Open files kept for everything except connections to `listen`: models' files, engines, the other ports.
_KEPT_FILES = 256
# The open file limit that we set at most, even if the system allows more.
_FILES = 1 << 16


def options(config: ServerConfig, connections: int, shared: bool = False) -> list[tuple[str, int]]:
    """Returns gRPC's own limits, which apply before our code sees a call, for a port that may be `shared`."""
    return [
        # Only among the processes of one server: otherwise a second server would silently share the port.
        ("grpc.so_reuseport", int(shared)),
        # Checked once a message is complete: `arrivals` bounds messages that are not. This is gRPC's own default; a
        # thousand texts of 512 tokens fit. `wire` bounds the number of fields.
        ("grpc.max_receive_message_length", 4 * _MIB),
        ("grpc.max_send_message_length", LARGEST),
        # No compression: a megabyte of gzip may decompress to a gigabyte.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.server_handshake_timeout_ms", _ms(_HANDSHAKE_SECONDS)),
        # Calls that gRPC could not hand over within so many seconds are ended, not handed over.
        ("grpc.server_max_unrequested_time_in_server", _UNREQUESTED_SECONDS),
        # Streams that ended or were reset count until the server has cleaned them up: this bounds a rapid reset attack.
        # So even a client that respects the limit may be refused; the limit is far above what clients need.
        ("grpc.max_concurrent_streams", config.max_streams),
        # Enough for a key, a trace and its baggage. Above the first limit gRPC refuses some calls, above the second
        # all. The limits are low because HPACK can repeat a header with one byte on each stream.
        ("grpc.max_metadata_size", _METADATA),
        ("grpc.absolute_max_metadata_size", 2 * _METADATA),
        # With BDP probing a connection may send 4 MiB before any of it is asked for. Throughput is as good without.
        ("grpc.http2.bdp_probe", 0),
        # Detects clients that are gone. If the second timeout is longer, it is the one that counts.
        ("grpc.keepalive_time_ms", _ms(config.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _ms(_PING_SECONDS)),
        ("grpc.http2.ping_timeout_ms", _ms(_PING_SECONDS)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(_PINGS_EVERY_SECONDS)),
        # gRPC varies the age by a tenth, so that clients do not all reconnect at once. Running calls may finish.
        ("grpc.max_connection_age_ms", _ms(config.max_connection_age_seconds)),
        ("grpc.max_connection_idle_ms", _ms(config.max_connection_idle_seconds)),
    ]


def within_files(wanted: int) -> int:
    """Returns how many connections `listen` may have, so that files are left for health, metrics and models. Raises
    the process's soft limit on open files first: shells set it low for programs that use select().
    """
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < _FILES:
        files = min(_FILES, most) if most != resource.RLIM_INFINITY else _FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    if files == resource.RLIM_INFINITY or wanted <= files - _KEPT_FILES:
        return wanted
    allowed = max(1, files - _KEPT_FILES, files // 2)
    logger.warning("max_connections: %d, as the process may have %d files open (ulimit -n)", allowed, files)
    return min(wanted, allowed)


def within_memory(wanted: int, streams: int) -> int:
    """Returns how many connections `listen` may have, so that their calls take a quarter of the memory at most: each
    connection may send all of them at once, before its key is known.
    """
    memory = hardware.memory()
    most = max(1, memory // (_CALLS_SHARE * _CALL_BYTES * streams))
    if wanted > most:
        gib, needed = memory / (1 << 30), wanted * streams * _CALL_BYTES / (1 << 30)
        told = "max_connections: %d, as %d with %d calls each (max_streams) may take %.1f of %.1f GiB"
        logger.warning(told, most, wanted, streams, needed, gib)
    return min(wanted, most)


def sockets(address: str, key: str, shared: bool = False) -> list[socket.socket]:
    """Returns a bound socket for each address that a host name has on this machine: localhost often has two. Sockets
    that are `shared` may have the same port; Linux gives each new connection to one of those that listen.

    Raises UserError naming the setting if another program uses the port at one of them, or if none can be bound.
    """
    host, port = host_and_port(address)
    bound: list[socket.socket] = []
    refused = OSError(errno.EADDRNOTAVAIL, "no such address on this machine")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, where in found:
            one = socket.socket(family, kind, protocol)
            bound.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                one.bind((where[0], port or (bound[0].getsockname()[1] if len(bound) > 1 else 0), *where[2:]))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                # A name may have an IPv6 address on a machine without IPv6.
                bound.pop().close()
                refused = error
        if not bound:
            raise refused
    except OSError as error:
        for one in bound:
            one.close()
        in_use = error.errno == errno.EADDRINUSE
        hint = "another program has the port: choose another" if in_use else (error.strerror or "")
        raise UserError(f"{key}: can't bind {address}", hint) from None
    return bound


def shown(host: str, port: int) -> str:
    """Returns HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
