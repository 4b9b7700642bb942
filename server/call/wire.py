"""Bytes that are no message of their method's kind, or one of far too many parts: the caller's fault, and told so.

gRPC itself would end such a call with UNKNOWN, before anything of ours sees it: no count, no request id.
"""

from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from tuneserve.server.call.errors import InvalidInput

_UNREADABLE, _CROWDED = object(), object()
# Fields of a message, those of the messages inside it included. The smallest are two bytes and take a hundred in
# memory, and the event loop is held while they are parsed: a megabyte of them for as long as a hundred of text.
_MOST_FIELDS = 1 << 15
# Bytes of a message whose fields are not worth counting.
_SMALL = 1 << 18


def lenient(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns a deserializer that leaves what it can't read, or should not, to `readable`. `parse` is a message's."""
    descriptor = parse.__self__.DESCRIPTOR  # type: ignore[attr-defined]

    def read(data: bytes) -> Any:
        if len(data) > _SMALL and _is_crowded(data, descriptor):
            return _CROWDED
        try:
            return parse(data)
        except DecodeError:
            return _UNREADABLE

    return read


def readable(request: Any) -> Any:
    """Returns a call's message or, for a stream, its messages. Raises InvalidInput, or they do."""
    if request is _UNREADABLE:
        raise InvalidInput("request", "is not a message of this method's kind")
    if request is _CROWDED:
        raise InvalidInput("request", f"has too many fields; allowed: {_MOST_FIELDS} in all, in messages of this size")
    return _Messages(request) if hasattr(request, "__aiter__") else request


class _Messages:
    """Iterates as the stream itself does: no generator, which somebody would have to close."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = aiter(requests)

    def __aiter__(self) -> "_Messages":
        return self

    async def __anext__(self) -> Any:
        return readable(await anext(self._requests))


def _is_crowded(data: bytes, descriptor: Descriptor) -> bool:
    """Whether there are more fields than are allowed: no more are counted. Of what is no message it says anything, as
    the parser refuses it.
    """
    inside, fields = [(_messages(descriptor), 0, len(data))], 0
    try:
        while inside:
            messages, at, end = inside.pop()
            while at < end:
                fields += 1
                if fields > _MOST_FIELDS:
                    return True
                tag, at = _varint(data, at)
                kind = tag & 7
                if kind == 2:
                    size, at = _varint(data, at)
                    if size and tag >> 3 in messages:
                        inside.append((_messages(messages[tag >> 3]), at, min(at + size, end)))
                    at += size
                elif kind == 0:
                    _, at = _varint(data, at)
                else:
                    at += {1: 8, 5: 4}.get(kind, 0)
    except IndexError:
        pass  # cut off, or no number
    return False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("more bytes than a number has")


@cache
def _messages(descriptor: Descriptor) -> dict[int, Descriptor]:
    """The kinds of the messages inside one, by field number."""
    return {field.number: field.message_type for field in descriptor.fields if field.message_type}
