"""Bytes that are no message of their method's kind: the caller's fault, and told so.

gRPC itself would end such a call with UNKNOWN, before anything of ours sees it: no count, no request id.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import DecodeError

from tuneserve.server.errors import InvalidInput

_UNREADABLE = object()


def lenient(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns a deserializer that leaves what it can't read to `readable`."""

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _UNREADABLE

    return read


def readable(request: Any) -> Any:
    """Returns a call's message or, for a stream, its messages. Raises InvalidInput, or they do."""
    if request is _UNREADABLE:
        raise InvalidInput("request", "is not a message of this method's kind")
    return _Messages(request) if hasattr(request, "__aiter__") else request


class _Messages:
    """Iterates as the stream itself does: no generator, which somebody would have to close."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = aiter(requests)

    def __aiter__(self) -> "_Messages":
        return self

    async def __anext__(self) -> Any:
        return readable(await anext(self._requests))
