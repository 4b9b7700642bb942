"""Converts the loosely typed options of Open Inference Protocol calls to fields of our own requests.

Options come as parameters of the call or, for generation, as JSON in a tensor, with our names or with vLLM's. Only
values of a wrong type are refused here; our own services check the allowed values.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from tuneserve.oip import inference_pb2
from tuneserve.server.call.errors import InvalidInput, Violations

# Triton's own options, for the call and not for the model. Streams here never end with an empty response.
_PROTOCOL = ("triton_enable_empty_final_response", "timeout")
# There are fewer options than this; and this much is read on the event loop in milliseconds.
_MOST = 64
_LONGEST = 256 << 10
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# vLLM's names for our fields.
_SYNONYMS = {
    "include_stop_str_in_output": "include_stop_text",
    "lora_name": "adapter",
    "structured_outputs": "structured_output",
}
_STRUCTURED = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
_EXPECTED = {
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_INT32: "a whole number",
    FieldDescriptor.CPPTYPE_INT64: "a whole number",
    FieldDescriptor.CPPTYPE_STRING: "text",
}


def parameters(request: inference_pb2.ModelInferRequest) -> dict[str, Any]:
    """Returns the call's options by name, without the protocol's own. Raises InvalidInput."""
    if len(request.parameters) > _MOST:
        raise InvalidInput("parameters", f"has {len(request.parameters)} entries; allowed: {_MOST}")
    values = {}
    for name, parameter in request.parameters.items():
        if name not in _PROTOCOL:
            kind = parameter.WhichOneof("parameter_choice")
            values[name] = getattr(parameter, kind) if kind else None
            if kind == "string_param":
                _check_length(parameter.string_param, f"parameters.{name}" if _NAME.fullmatch(name) else "parameters")
    return values


def microseconds(parameter: inference_pb2.InferParameter, path: str) -> int:
    """Returns a timeout in microseconds. Raises InvalidInput."""
    kind = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, kind) if kind in ("int64_param", "uint64_param") else -1
    if value < 0:
        raise InvalidInput(path, "is not a number of microseconds; allowed: whole numbers that are not negative")
    return int(value)


def parse(text: str, path: str) -> dict[str, Any]:
    """Returns options from the text of a JSON object. Raises InvalidInput."""
    _check_length(text, path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInput(path, "is not JSON") from None
    if not isinstance(values, dict):
        raise InvalidInput(path, 'is not a JSON object; for example {"max_tokens": 16}')
    return values


def _check_length(text: str, path: str) -> None:
    if len(text) > _LONGEST:
        raise InvalidInput(path, f"has {len(text)} characters; allowed: {_LONGEST}")


def fill(targets: Sequence[tuple[Message, Sequence[str]]], values: Mapping[str, Any], where: str) -> dict[str, str]:
    """Sets fields by name, each in the first target that allows it. Returns each field's path for errors.

    Raises InvalidInput for options that no target allows, or whose values have a wrong type.
    """
    if len(values) > _MOST:
        raise InvalidInput(where, f"has {len(values)} entries; allowed: {_MOST}")
    paths = {}
    with Violations() as wrong:
        for given, value in values.items():
            path = f"{where}.{given}" if _NAME.fullmatch(given) else where
            name = _SYNONYMS.get(given, given)
            message = next((message for message, names in targets if name in names), None)
            if message is None:
                allowed = ", ".join(name for _, names in targets for name in names)
                wrong.add(path, f"is not an option of this model; allowed: {allowed}")
                continue
            paths[name] = path
            if value is None:
                continue
            field: FieldDescriptor = message.DESCRIPTOR.fields_by_name[name]  # type: ignore[assignment]
            try:
                json_format.ParseDict({name: _converted(field, value)}, message)
            except (json_format.ParseError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
                wrong.add(path, f"is not {_expected(field)}")
    return paths


def _converted(field: FieldDescriptor, value: Any) -> Any:
    """Returns a value in the JSON form of the field."""
    if field.name == "structured_output":
        return _structured(value)
    if field.name == "top_k" and value in (-1, "-1"):  # vLLM's value for all tokens
        return 0
    if field.enum_type and isinstance(value, str):
        # "end" for TRUNCATION_END.
        return value if value in field.enum_type.values_by_name else _prefix(field.enum_type) + value.upper()
    if field.is_repeated and not isinstance(value, list | dict):
        return [value]
    return value


def _structured(value: Any) -> dict[str, Any]:
    """Returns the JSON of our message for vLLM's structured_outputs: {"regex": "..."}, as an object or as text."""
    [(kind, content)] = dict(json.loads(value) if isinstance(value, str) else value).items()
    if kind == "json" and not isinstance(content, str):
        content = json.dumps(content)
    return {_STRUCTURED[kind]: {"options": content} if kind == "choice" else content}


def _prefix(enum: EnumDescriptor) -> str:
    zero: str = enum.values_by_number[0].name
    return zero.removesuffix("UNSPECIFIED")


def _expected(field: FieldDescriptor) -> str:
    if field.name == "structured_output":
        return 'one of {"json": ...}, {"regex": ...}, {"choice": [...]} and {"grammar": ...}'
    if field.enum_type:
        names = [value.name.removeprefix(_prefix(field.enum_type)).lower() for value in field.enum_type.values[1:]]
        return f"one of {', '.join(names)}"
    if field.message_type:
        return "a JSON object of numbers by token id"
    expected = _EXPECTED[field.cpp_type]
    return f"a list, each {expected}" if field.is_repeated else expected
