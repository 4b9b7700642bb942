"""Messages from bytes and to bytes.

Bytes that are not a message of the method's type, or a message with far too many fields, get an INVALID_ARGUMENT:
gRPC itself would end such a call with UNKNOWN before our code sees it, without a metric or a request id. Fields are
counted before a message is parsed, since a small field takes a hundred times its bytes in memory. Counting, parsing and
serializing a long answer are done in turns.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.turns import in_turns, turn

# Fields of a message, including those of the messages inside it.
_MOST_FIELDS = 1 << 16
# What a field takes in memory; the smallest are two bytes on the wire.
_FIELD_BYTES = 128
# Bytes of a list of numbers, each one byte on the wire and eight in memory: far more token ids than any model reads.
_MOST_NUMBERS = 1 << 20
_NO_NUMBERS = (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_MESSAGE)
# Up to this many bytes, the fields of a message are not worth counting.
_SMALL = 1 << 10
# Fields that are counted at once.
_SOME_FIELDS = 1 << 10
# Up to this many messages in the lists of an answer, it is serialized at once.
_FEW = 16


Parse: TypeAlias = Callable[[bytes], Any]


class Received(NamedTuple):
    """A message of a stream, and its size in memory, in bytes."""

    message: Any
    size: int


async def size_of(data: bytes, parse: Parse) -> int:
    """Returns the bytes that a message takes in memory once parsed. `parse` is its class's method. Raises InvalidInput
    for a message with too many fields.
    """
    if len(data) <= _SMALL:
        return len(data)
    counts = [count async for count in in_turns(_counted(data, parse.__self__.DESCRIPTOR))]  # type: ignore[attr-defined]
    return len(data) + _FIELD_BYTES * counts[-1]


async def readable(data: bytes, parse: Parse) -> Any:
    """Returns the message that `parse` makes of the bytes. Raises InvalidInput."""
    if len(data) > _SMALL:
        await turn()
    try:
        return parse(data)
    except DecodeError:
        raise InvalidInput("request", "is not a message of this method's type") from None


async def serialized(message: Message) -> bytes:
    """Returns a message's bytes. Between the entries of its long lists of messages, other calls get their turn."""
    # Making the message may have taken long already.
    await turn()
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
    """How many messages are in its repeated fields, and in those of its singular message fields."""
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
    """Iterates over a call's messages. Not a generator, because that would have to be closed. Raises InvalidInput."""

    def __init__(self, requests: AsyncIterator[bytes], parse: Parse) -> None:
        self._requests = aiter(requests)
        self._parse = parse

    def __aiter__(self) -> "Messages":
        return self

    async def __anext__(self) -> Received:
        data = await anext(self._requests)
        size = await size_of(data, self._parse)
        return Received(await readable(data, self._parse), size)


def _counted(data: bytes, descriptor: Descriptor) -> Iterator[int]:
    """Yields the number of fields so far, at intervals and at the end. Raises InvalidInput for too many fields.

    For bytes that are not a message the number means nothing: the parser refuses them.
    """
    inside, fields = [(descriptor, 0, len(data))], 0
    try:
        while inside:
            of, at, end = inside.pop()
            messages, numbers = _messages(of), _numbers(of)
            while at < end:
                fields += 1
                if not fields % _SOME_FIELDS:
                    yield fields
                tag, at = _varint(data, at)
                kind = tag & 7
                if kind == 2:
                    size, at = _varint(data, at)
                    if size and tag >> 3 in messages:
                        inside.append((messages[tag >> 3], at, min(at + size, end)))
                    elif size > _MOST_NUMBERS and tag >> 3 in numbers:
                        raise InvalidInput(
                            "request", f"has {size} bytes of numbers in one list; allowed: {_MOST_NUMBERS}"
                        )
                    at += size
                elif kind == 0:
                    _, at = _varint(data, at)
                else:
                    at += {1: 8, 5: 4}.get(kind, 0)
                if fields > _MOST_FIELDS:
                    raise InvalidInput("request", f"has too many fields; allowed: {_MOST_FIELDS} in all")
    except IndexError:
        pass  # truncated, or not a varint
    yield fields


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
            raise IndexError("more bytes than a varint has")


@cache
def _messages(descriptor: Descriptor) -> dict[int, Descriptor]:
    """The types of a message's message fields, by field number."""
    return {field.number: field.message_type for field in descriptor.fields if field.message_type}


@cache
def _numbers(descriptor: Descriptor) -> set[int]:
    """The field numbers of the repeated numeric fields."""
    return {field.number for field in descriptor.fields if field.is_repeated and field.cpp_type not in _NO_NUMBERS}
