"""How unauthenticated clients delay a caller: connections that send calls without a key at a given rate.

    python -m tuneserve.benchmarks.serving.flood localhost:8033 --model sentiment --connections 8 --rate 400000

Regime. Each connection speaks plain HTTP/2, without a gRPC library, and sends calls of 15 bytes (headers by reference,
end of stream) for ClassificationService.Classify; the bytes of all connections together are paced to `--rate` a second.
A connection that the server closes is reopened at once. The caller has a key (caller.py). Both run on the server's
machine, and take their share of it. The last line of stdout is the result as JSON.
"""

import json
import socket
import threading
import time
from typing import Any

import click

from tuneserve.benchmarks.serving.caller import Caller

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_ACKNOWLEDGED = b"\0\0\0\x04\x01\0\0\0\0"
_HEADERS = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/tuneserve.v1.ClassificationService/Classify"),
    (b":authority", b"l"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)
# After the first call they are the last six entries of HPACK's dynamic table, and take one byte each.
_NAMED = b"".join(b"\x40" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in _HEADERS)
_AGAIN = bytes(0x80 | 67 - place for place in range(len(_HEADERS)))
_AT_ONCE = 20


def _call(stream: int, block: bytes) -> bytes:
    return len(block).to_bytes(3) + b"\x01\x05" + stream.to_bytes(4) + block


class Flood:
    """Unauthenticated connections, one after the other."""

    def __init__(self, address: tuple[str, int], rate: float, until: float) -> None:
        self._address = address
        self._rate = rate
        self._until = until
        self.connections = self.calls = self.bytes = 0

    def run(self) -> None:
        """Sends until the time is up."""
        while time.monotonic() < self._until:
            self.connections += 1
            try:
                with socket.create_connection(self._address, timeout=5) as connection:
                    self._send(connection)
            except OSError:
                time.sleep(0.01)

    def _send(self, connection: socket.socket) -> None:
        connection.sendall(_PREFACE)
        connection.recv(4096)
        connection.sendall(_ACKNOWLEDGED)
        threading.Thread(target=_read, args=(connection,), daemon=True).start()
        block, stream, begin, sent = _NAMED, 1, time.monotonic(), 0
        while time.monotonic() < self._until:
            data = b""
            for _ in range(_AT_ONCE):
                data += _call(stream, block)
                block, stream = _AGAIN, stream + 2
            connection.sendall(data)
            sent += len(data)
            self.bytes += len(data)
            self.calls += _AT_ONCE
            time.sleep(max(0.0, begin + sent / self._rate - time.monotonic()))


def _read(connection: socket.socket) -> None:
    try:
        while connection.recv(1 << 16):
            pass
    except OSError:
        pass


def measure(target: str, model: str, connections: int, rate: float, seconds: float) -> dict[str, Any]:
    """Returns how long the caller waited, in milliseconds, and what the connections without a key sent."""
    caller = Caller(target, model, seconds)
    host, port = target.rsplit(":", 1)
    time.sleep(1.0)
    until = time.monotonic() + seconds - 2.0
    floods = [Flood((host, int(port)), rate / connections, until) for _ in range(connections)]
    threads = [threading.Thread(target=flood.run) for flood in floods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return caller.figures() | {
        "stranger_connections": sum(flood.connections for flood in floods),
        "stranger_calls": sum(flood.calls for flood in floods),
        "stranger_bytes": sum(flood.bytes for flood in floods),
    }


@click.command()
@click.argument("target", metavar="HOST:PORT")
@click.option("--model", required=True, help="A classifier that the key may use.")
@click.option(
    "--connections", type=click.IntRange(0), default=8, show_default=True, help="Connections without a key, at once."
)
@click.option("--rate", type=float, default=400_000, show_default=True, help="Bytes a second, of all of them together.")
@click.option("--seconds", type=click.FloatRange(5), default=12.0, show_default=True)
def main(target: str, model: str, connections: int, rate: float, seconds: float) -> None:
    """Measure how long a caller waits while connections without a key flood a server that requires keys."""
    print(json.dumps(measure(target, model, connections, rate, seconds)))


if __name__ == "__main__":
    main()
