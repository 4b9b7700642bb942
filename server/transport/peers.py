"""The connections to a port, as Linux knows them: gRPC has no functions to list, close or refuse them.

Peers are named as gRPC names them: ipv4:127.0.0.1:4711, or ipv6:%5B::1%5D:4711.
"""

import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"

_INTERNET = (socket.AF_INET, socket.AF_INET6)
# The prefix that one subscriber usually has.
_IPV6_PREFIX = 64


@dataclass(frozen=True)
class File:
    """An open file of this process. Numbers are used again, inodes are not."""

    number: int
    inode: int


def address(peer: str) -> str:
    """Returns a peer without its port."""
    return peer.rpartition(":")[0]


@lru_cache(1024)
def network(address: str) -> "Network | None":
    """Returns the network of an address: the address itself, or 64 bits of IPv6; None if it is not of the internet."""
    kind, _, host = address.partition(":")
    try:
        if kind == "ipv4":
            return ipaddress.IPv4Network(host)
        return ipaddress.IPv6Network((host.removeprefix("%5B").removesuffix("%5D"), _IPV6_PREFIX), strict=False)
    except ValueError:
        return None


def connected(port: int) -> dict[str, File]:
    """Returns the files of the connections to one of our ports, by their peers."""
    found = {}
    for file, one in _sockets(port):
        with suppress(OSError):
            found[_peer(one)] = file
    return found


def hang_up(file: File) -> bool:
    """Closes a connection, if the file is still the same."""
    with suppress(OSError), _opened(file.number) as one:
        if os.fstat(one.fileno()).st_ino == file.inode:
            one.shutdown(socket.SHUT_RDWR)
            return True
    return False


def ignore(port: int, networks: Collection[Network]) -> None:
    """From now on, Linux drops new connections to the port from these networks, and from no others. Connections that
    exist go on. Raises OSError where a socket takes no filter.
    """
    program = ctypes.create_string_buffer(_program(networks))
    filtered = struct.pack("HL", len(program) // _SIZE, ctypes.addressof(program))
    for _, one in _sockets(port):
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtered)


# Classic BPF (linux/filter.h), which needs no privileges.
_SO_ATTACH_FILTER = 26
_SIZE = 8  # of an instruction
_LOAD_WORD, _LOAD_BYTE, _AND, _EQUAL, _JUMP, _RETURN = 0x20, 0x30, 0x54, 0x15, 0x05, 0x06
_IP_HEADER = -0x100000 & 0xFFFFFFFF  # SKF_NET_OFF
_IPV4_SOURCE, _IPV6_SOURCE = _IP_HEADER + 12, _IP_HEADER + 8
_PASS, _DROP = 0xFFFFFFFF, 0


def _program(networks: Collection[Network]) -> bytes:
    """Returns a filter that drops packets from these networks. A socket that listens may get both kinds of IP."""
    of_4, of_6 = [_instruction(_LOAD_WORD, _IPV4_SOURCE)], []
    for one in networks:
        first, second = struct.unpack("!II", one.network_address.packed.ljust(8, b"\0")[:8])
        if one.version == 4:
            of_4 += [_skip_unless(first, 1), _end(_DROP)]
        else:
            of_6 += [_instruction(_LOAD_WORD, _IPV6_SOURCE), _skip_unless(first, 3)]
            of_6 += [_instruction(_LOAD_WORD, _IPV6_SOURCE + 4), _skip_unless(second, 1), _end(_DROP)]
    version = [_instruction(_LOAD_BYTE, _IP_HEADER), _instruction(_AND, 0xF0), _instruction(_EQUAL, 0x40, 1, 0)]
    to_6 = _instruction(_JUMP, len(of_4) + 1)
    return b"".join([*version, to_6, *of_4, _end(_PASS), *of_6, _end(_PASS)])


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _skip_unless(value: int, count: int) -> bytes:
    """Skips so many instructions if another value was loaded."""
    return _instruction(_EQUAL, value, 0, count)


def _end(result: int) -> bytes:
    return _instruction(_RETURN, result)


def _sockets(port: int) -> Iterator[tuple[File, socket.socket]]:
    """Yields this process's sockets of a port: those that listen, and connections."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), _opened(int(name)) as one:
            if one.family in _INTERNET and one.getsockname()[1] == port:
                yield File(int(name), os.fstat(one.fileno()).st_ino), one


@contextmanager
def _opened(number: int) -> Iterator[socket.socket]:
    """Yields a socket of our own for an open file, whatever becomes of its number. Raises OSError for other files."""
    copy = os.dup(number)
    try:
        one = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with one:
        yield one


def _peer(one: socket.socket) -> str:
    """Returns the peer of a socket. Raises OSError if it is not connected."""
    host, port = one.getpeername()[:2]
    host = host.removeprefix("::ffff:")
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
