"""A channel to a server, whose errors become one line that says what to do. gRPC is imported when one is opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import grpc

HINTS = {
    "NOT_FOUND": "tuneserve call models lists what is served",
    "RESOURCE_EXHAUSTED": "the server has all it can take: try again, later or with less",
    "DEADLINE_EXCEEDED": "wait longer with --timeout",
    "UNAUTHENTICATED": "set TUNESERVE_KEY, or pass --key",
    "PERMISSION_DENIED": "another key may be allowed to: --key, or TUNESERVE_KEY",
}
# The same call would never bring another answer.
_REFUSALS = {
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "UNIMPLEMENTED",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
}


class CallFailed(click.ClickException):
    """A call that brought no answer."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints as every other error of the command line is printed."""
        click.echo(f"error: {self.message}", err=True)
        if self.hint:
            click.echo(f"hint:  {self.hint}", err=True)


class CallRefused(CallFailed):
    """A call that would bring no answer however often it is made."""

    exit_code = 2


@dataclass(frozen=True)
class Server:
    """Where a server is, and how it is spoken to."""

    target: str  # host:port
    timeout: float  # seconds for a whole call
    key: str = ""  # API key; none when empty
    tls: bool = False
    ca: Path | None = None  # PEM; what the machine trusts when None
    certificate: Path | None = None  # PEM, for a server that wants one of its clients
    certificate_key: Path | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What goes with every call."""
        return {
            "timeout": self.timeout,
            "metadata": [("authorization", f"Bearer {self.key}")] if self.key else [],
        }

    def credentials(self) -> "grpc.ChannelCredentials | None":
        """What a channel is opened with; None without TLS."""
        import grpc

        if not self.tls:
            return None
        files = (self.ca, self.certificate_key, self.certificate)
        return grpc.ssl_channel_credentials(*(file.read_bytes() if file else None for file in files))


@contextmanager
def connected(server: Server) -> "Iterator[grpc.Channel]":
    """Yields a channel. A gRPC error inside the block becomes CallFailed or CallRefused."""
    import grpc

    options = [("grpc.max_receive_message_length", 64 * 1024 * 1024)]
    if credentials := server.credentials():
        opened = grpc.secure_channel(server.target, credentials, options=options)
    else:
        opened = grpc.insecure_channel(server.target, options=options)
    with opened as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise failure(error, server) from None


def failure(error: Any, server: Server) -> CallFailed:
    """Returns what a gRPC error means to who called."""
    code, message = error.code().name, error.details() or "no reason given"
    # Our server marks whatever it answers with a request id: without one, nobody was there to answer.
    answered = any(key == "x-request-id" for key, _ in error.trailing_metadata() or ())
    if code == "UNAVAILABLE" and not answered:
        other = "without --tls" if server.tls else "with --tls"
        return CallFailed(
            f"no server answers at {server.target}: {message}",
            f"start one: tuneserve serve --model NAME=PATH; another address: --target HOST:PORT; or try {other}",
        )
    if code == "DEADLINE_EXCEEDED" and not answered:
        message = f"no answer from {server.target} within {server.timeout:g} s"
    found = (text for text in _violations(error) if text not in message)
    kind = CallRefused if code in _REFUSALS else CallFailed
    return kind(f"{'; '.join([message, *found])} ({code})", HINTS.get(code, ""))


def _violations(error: Any) -> Iterator[str]:
    """Yields each field that the server found wrong, and why."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status, from something between us and the server
        return
    for detail in status.details if status else ():
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            for violation in bad_request.field_violations:
                yield f"{violation.field}: {violation.description}"
