"""What the messages are on the wire, byte by byte, so that a changed field number, type or name is seen.

golden.json has, for every message of the public API, examples that set every field: as JSON, and as the bytes that
clients have been sending since. An entry is never changed. Fields that are new get entries of their own:

    .venv/bin/python tests/protos/test_golden.py
"""

import json
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf import duration_pb2, json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import tuneserve.v1

FILE = Path(__file__).with_name("golden.json")
ENTRIES = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
# Fields of these types are filled with this.
WELL_KNOWN = {
    duration_pb2.Duration.DESCRIPTOR.full_name: "1.500s",
    "google.protobuf.Any": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "2.500s"},
    "google.protobuf.Struct": {"text": "ü", "list": [1.5, True, None], "object": {"whole": 3}},
    "google.protobuf.Timestamp": "2026-01-02T03:04:05.000006Z",
}


def messages() -> dict[str, Descriptor]:
    """Every message of the package by its name, without the entries of maps."""
    found = {}
    for module in pkgutil.iter_modules(tuneserve.v1.__path__):
        if module.name.endswith("_pb2"):
            file = import_module(f"tuneserve.v1.{module.name}").DESCRIPTOR
            found.update(file.message_types_by_name)
    return found


def parsed(name: str, text: object) -> Message:
    return json_format.ParseDict(text, GetMessageClass(messages()[name])())


def as_json(message: Message) -> object:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def unset(descriptor: Descriptor) -> set[str]:
    """The fields of a message that no entry sets."""
    set_ = {field.name for key in ENTRIES if key.split(" ")[0] == descriptor.name for field, _ in fields(key)}
    return {field.name for field in descriptor.fields} - set_


def fields(key: str) -> list[tuple[FieldDescriptor, object]]:
    return parsed(key.split(" ")[0], ENTRIES[key]["json"]).ListFields()


@pytest.mark.parametrize("key", ENTRIES)
def test_the_bytes_are_what_they_were(key):
    message = parsed(key.split(" ")[0], ENTRIES[key]["json"])
    assert message.SerializeToString(deterministic=True).hex() == ENTRIES[key]["hex"]


@pytest.mark.parametrize("key", ENTRIES)
def test_old_bytes_mean_what_they_meant(key):
    message = GetMessageClass(messages()[key.split(" ")[0]])()
    message.ParseFromString(bytes.fromhex(ENTRIES[key]["hex"]))
    assert as_json(message) == ENTRIES[key]["json"]


@pytest.mark.parametrize("name", messages())
def test_every_field_has_an_example(name):
    assert any(key.split(" ")[0] == name for key in ENTRIES), f"no entry: {__doc__}"
    assert not unset(messages()[name]), f"new fields: {__doc__}"


def examples(descriptor: Descriptor, new: set[str]) -> Iterator[Message]:
    """One message with all new fields, and one more for each further alternative of a oneof."""
    groups: dict[object, list[FieldDescriptor]] = {}
    for field in descriptor.fields:
        if field.name in new:
            group = field.containing_oneof
            groups.setdefault(group.name if group and len(group.fields) > 1 else field.name, []).append(field)
    for index in range(max(map(len, groups.values()), default=1)):
        message = GetMessageClass(descriptor)()
        for group in groups.values():
            if index < len(group):
                fill(message, group[index])
        yield message


def fill(message: Message, field: FieldDescriptor, depth: int = 0) -> None:
    """Sets a field to a value that differs from its neighbours'."""
    if field.message_type and field.message_type.GetOptions().map_entry:
        entry = GetMessageClass(field.message_type)()
        for part in field.message_type.fields:
            fill(entry, part, depth)
        target = getattr(message, field.name)
        if field.message_type.fields_by_name["value"].message_type:
            target[entry.key].CopyFrom(entry.value)
        else:
            target[entry.key] = entry.value
    elif field.message_type:
        value = GetMessageClass(field.message_type)()
        if field.message_type.full_name in WELL_KNOWN:
            json_format.ParseDict(WELL_KNOWN[field.message_type.full_name], value)
        else:
            seen = set()
            for inner in field.message_type.fields:
                group = inner.containing_oneof.name if inner.containing_oneof else inner.name
                if group not in seen and depth < 4:
                    fill(value, inner, depth + 1)
                seen.add(group)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            getattr(message, field.name).CopyFrom(value)
    else:
        kinds = FieldDescriptor
        value = {
            kinds.CPPTYPE_STRING: f"{field.name} ü" if field.type == kinds.TYPE_STRING else b"\x00\xff",
            kinds.CPPTYPE_BOOL: True,
            kinds.CPPTYPE_FLOAT: field.number + 0.5,
            kinds.CPPTYPE_DOUBLE: field.number + 0.25,
            kinds.CPPTYPE_ENUM: field.enum_type.values[-1].number if field.enum_type else 0,
            kinds.CPPTYPE_INT32: -field.number,
        }.get(field.cpp_type, 300 + field.number)
        if field.is_repeated:
            getattr(message, field.name).extend([value, value])
        else:
            setattr(message, field.name, value)


def main() -> None:
    for name, descriptor in messages().items():
        known = sum(key.split(" ")[0] == name for key in ENTRIES)
        new = unset(descriptor)
        if known and not new:
            continue
        for number, message in enumerate(examples(descriptor, new), known + 1):
            ENTRIES[name if number == 1 else f"{name} {number}"] = {
                "json": as_json(message),
                "hex": message.SerializeToString(deterministic=True).hex(),
            }
    lines = [f"{json.dumps(key)}: {json.dumps(entry, ensure_ascii=False)}" for key, entry in ENTRIES.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
