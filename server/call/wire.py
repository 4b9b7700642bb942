"""Messages from bytes and to bytes.

Bytes that are no message of their method's kind, or one of far too many parts, are the caller's fault, and told so:
gRPC itself would end such a call with UNKNOWN, before anything of ours sees it, without a count or a request id. And a
long answer is made into bytes in turns.
"""

from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.concurrency import in_turns

_UNREADABLE, _CROWDED = object(), object()
# Fields of a message, those of the messages inside it included. The smallest are two bytes and take a hundred in
# memory, and the event loop is held while they are parsed: a megabyte of them for as long as a hundred of text.
_MOST_FIELDS = 1 << 15
# Bytes of a list of numbers, which are a byte each and take eight: far more than any model reads token ids.
_MOST_NUMBERS = 1 << 20
_NO_NUMBERS = (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_MESSAGE)
# Bytes of a message whose fields are not worth counting.
_SMALL = 1 << 18


# Messages in the lists of an answer that are made into bytes at once.
_FEW = 16


class Received(NamedTuple):
    """A message that came, or what is wrong with it; and its size in bytes."""

    message: Any
    size: int


def lenient(parse: Callable[[bytes], Any]) -> Callable[[bytes], Received]:
    """Returns a deserializer that leaves what it can't read, or should not, to `readable`. `parse` is a message's."""
    descriptor = parse.__self__.DESCRIPTOR  # type: ignore[attr-defined]

    def read(data: bytes) -> Received:
        if len(data) > _SMALL and _is_crowded(data, descriptor):
            return Received(_CROWDED, len(data))
        try:
            return Received(parse(data), len(data))
        except DecodeError:
            return Received(_UNREADABLE, len(data))

    return read


def readable(received: Received) -> Any:
    """Returns a call's message. Raises InvalidInput."""
    if received.message is _UNREADABLE:
        raise InvalidInput("request", "is not a message of this method's kind")
    if received.message is _CROWDED:
        raise InvalidInput(
            "request",
            f"has too many fields; allowed: {_MOST_FIELDS} in all, in messages of this size, and {_MOST_NUMBERS} bytes "
            "of numbers in one",
        )
    return received.message


async def serialized(message: Message) -> bytes:
    """Returns a message's bytes; where it has long lists of messages, others have their turn between two of those."""
    # What made it may have taken long already.
    async for _ in in_turns((message,)):
        if _entries(message) <= _FEW:
            return message.SerializeToString()
    parts, rest = list[bytes](), type(message)()
    for field, value in message.ListFields():
        if field.message_type is None or _is_map(field):
            _copy(field, value, rest)
        elif field.is_repeated:
            async for one in in_turns(value):
                parts += _framed(field, one.SerializeToString())
        else:
            parts += _framed(field, await serialized(value))
    return b"".join((*parts, rest.SerializeToString()))


def _entries(message: Message) -> int:
    """How many messages are in its lists, and in those of the messages that it has one of."""
    found = 0
    for field, value in message.ListFields():
        if field.message_type is not None and not _is_map(field):
            found += len(value) if field.is_repeated else _entries(value)
    return found


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def _copy(field: FieldDescriptor, value: Any, target: Message) -> None:
    if field.is_repeated:
        getattr(target, field.name).MergeFrom(value)
    else:
        setattr(target, field.name, value)


def _framed(field: FieldDescriptor, data: bytes) -> tuple[bytes, bytes]:
    return _as_varint(field.number << 3 | 2) + _as_varint(len(data)), data


def _as_varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    data.append(value)
    return bytes(data)


class Messages:
    """Iterates over a call's messages as the stream itself does: no generator, which somebody would have to close.
    Raises InvalidInput.
    """

    def __init__(self, requests: AsyncIterator[Received]) -> None:
        self._requests = aiter(requests)

    def __aiter__(self) -> "Messages":
        return self

    async def __anext__(self) -> Any:
        return readable(await anext(self._requests))


def _is_crowded(data: bytes, descriptor: Descriptor) -> bool:
    """Whether there are more fields than are allowed: no more are counted. Of what is no message it says anything, as
    the parser refuses it.
    """
    inside, fields = [(descriptor, 0, len(data))], 0
    try:
        while inside:
            of, at, end = inside.pop()
            messages, numbers = _messages(of), _numbers(of)
            while at < end:
                fields += 1
                if fields > _MOST_FIELDS:
                    return True
                tag, at = _varint(data, at)
                kind = tag & 7
                if kind == 2:
                    size, at = _varint(data, at)
                    if size and tag >> 3 in messages:
                        inside.append((messages[tag >> 3], at, min(at + size, end)))
                    elif size > _MOST_NUMBERS and tag >> 3 in numbers:
                        return True
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


@cache
def _numbers(descriptor: Descriptor) -> set[int]:
    """The numbers of the fields that are lists of numbers."""
    return {field.number for field in descriptor.fields if field.is_repeated and field.cpp_type not in _NO_NUMBERS}
