"""A channel to a server, whose errors become one line that says what to do. gRPC is imported when one is opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import grpc

    from tuneserve.client.endpoint import Endpoint

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


@contextmanager
def connected(server: "Endpoint") -> "Iterator[grpc.Channel]":
    """Yields a channel. A gRPC error inside the block becomes CallFailed or CallRefused."""
    import grpc

    with server.open() as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise failure(error, server) from None


def failure(error: "grpc.RpcError", server: "Endpoint") -> CallFailed:
    """Returns what a gRPC error means to who called."""
    from tuneserve.client import errors

    found = errors.of(error)
    code, message = found.code.name, str(found)
    # Our server marks whatever it answers with a request id: without one, nobody was there to answer.
    answered = bool(found.request_id)
    if code == "UNAVAILABLE" and not answered:
        other = "without --tls" if server.secure else "with --tls"
        return CallFailed(
            f"no server answers at {server.target}: {message}",
            f"start one: tuneserve serve --model NAME=PATH; another address: --target HOST:PORT; or try {other}",
        )
    if code == "DEADLINE_EXCEEDED" and not answered:
        message = f"no answer from {server.target} within {server.timeout:g} s"
    texts = (f"{violation.field}: {violation.description}" for violation in found.violations)
    shown = "; ".join([message, *(text for text in texts if text not in message)])
    kind = CallRefused if code in _REFUSALS else CallFailed
    return kind(f"{shown} ({code})", HINTS.get(code, ""))
