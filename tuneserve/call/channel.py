"""A channel to a server. gRPC errors become one line with a hint. gRPC is imported when a channel is opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import grpc

    from tuneserve.client.endpoint import Endpoint

_MODELS = "tuneserve call models lists the models that are served"
# By an error's reason, or else by its status. Of other things that are missing, the message alone says which there are.
HINTS = {
    "MODEL_NOT_FOUND": _MODELS,
    "VERSION_NOT_FOUND": _MODELS,
    "ALIAS_NOT_FOUND": _MODELS,
    "ADAPTER_NOT_FOUND": _MODELS,
    "FEEDBACK_FULL": "its operator can train on the rows, and move them away",
    "RESOURCE_EXHAUSTED": "the server is overloaded, or a quota is spent: try again later, or send less",
    "DEADLINE_EXCEEDED": "wait longer with --timeout",
    "UNAUTHENTICATED": "set TUNESERVE_KEY, or pass --key",
    "PERMISSION_DENIED": "another key may be allowed to: --key, or TUNESERVE_KEY",
}
# Statuses of calls that would fail again if they were repeated.
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
    """A call that failed."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints the error as all other errors of the command line are printed."""
        click.echo(f"error: {self.message}", err=True)
        if self.hint:
            click.echo(f"hint:  {self.hint}", err=True)


class CallRefused(CallFailed):
    """A call that would fail however often it is made."""

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
    """Returns a gRPC error as an error for the user."""
    from tuneserve.client import errors

    found = errors.of(error)
    code, message = found.code.name, str(found)
    # Our server sends a request id with every answer: without one, no server of ours answered.
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
    return kind(f"{shown} ({code})", HINTS.get(found.reason) or HINTS.get(code, ""))
