"""Constraints: which are taken, how the others are named, and that nothing of them is repeated."""

import json

import pytest

from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.engine.interface import StructuredOutput
from tuneserve.server.text.structured_output import check, structured
from tuneserve.v1 import generation_pb2 as pb

PERSON = {
    "$defs": {"city": {"type": "string", "enum": ["Lisbon", "東京"]}},
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,20}$"},
        "age": {"type": "integer", "minimum": 0},
        "city": {"$ref": "#/$defs/city"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
    },
    "required": ["name"],
    "additionalProperties": False,
}
DRAFT_7 = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}


def nested(levels: int) -> str:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"inner": schema}}
    return json.dumps(schema)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"json_schema": json.dumps(PERSON)}, StructuredOutput("json", json.dumps(PERSON))),
        ({"json_schema": "{}"}, StructuredOutput("json", "{}")),
        ({"json_schema": json.dumps(DRAFT_7)}, StructuredOutput("json", json.dumps(DRAFT_7))),
        ({"json_schema": nested(15)}, StructuredOutput("json", nested(15))),
        ({"regex": r"\d{3}-[a-z]+"}, StructuredOutput("regex", r"\d{3}-[a-z]+")),
        ({"regex": " "}, StructuredOutput("regex", " ")),
        ({"grammar": 'root ::= "a" | "b"'}, StructuredOutput("grammar", 'root ::= "a" | "b"')),
        ({"choice": pb.Choice(options=["yes", " "])}, StructuredOutput("choice", ["yes", " "])),
    ],
)
def test_good_ones(fields, expected):
    check(pb.StructuredOutput(**fields))
    assert structured(pb.StructuredOutput(**fields)) == expected


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({}, "", "is unset"),
        ({"json_schema": ""}, "json_schema", "is empty"),
        ({"json_schema": '{"CANARY": '}, "json_schema", "is not JSON: line 1, column 12"),
        ({"json_schema": '{"CANARY": NaN}'}, "json_schema", "is not JSON that can be read"),
        ({"json_schema": "[" * 9000}, "json_schema", "is not JSON that can be read"),
        ({"json_schema": '["CANARY"]'}, "json_schema", "is not a JSON object"),
        ({"json_schema": "true"}, "json_schema", "is not a JSON object"),
        ({"json_schema": nested(16)}, "json_schema", "is nested more than 32 deep"),
        ({"json_schema": '{"type": "CANARY"}'}, "json_schema", "is not a JSON Schema: its 'type' is wrong"),
        ({"json_schema": '{"properties": {"CANARY": {"type": 5}}}'}, "json_schema", "its 'type' is wrong"),
        ({"json_schema": '{"required": "CANARY"}'}, "json_schema", "its 'required' is wrong"),
        ({"json_schema": '{"pattern": "[CANARY"}'}, "json_schema", "its 'pattern' is wrong"),
        ({"json_schema": '{"$schema": ["CANARY"]}'}, "json_schema", "its '$schema' is wrong"),
        # Both are {1,99999}: in time that grows with its square, the engine's parser would write it out.
        ({"json_schema": '{"pattern": "a{1,99999}"}'}, "json_schema", "repeat 99999 times"),
        ({"json_schema": '{"pattern": "a\\u007b1,99999\\u007d"}'}, "json_schema", "repeat 99999 times"),
        ({"json_schema": '{"pattern": "a{' + "9" * 5000 + '}"}'}, "json_schema", "repeat 9999999999 times"),
        ({"json_schema": json.dumps({"pattern": "a{900}b{900}c{900}"})}, "json_schema", "repeat 2700 times"),
        ({"json_schema": json.dumps({"CANARY": "x" * 40_000})}, "json_schema", "bytes; allowed: 32768"),
        ({"regex": ""}, "regex", "is empty"),
        ({"regex": "a(CANARY"}, "regex", "is not a regular expression; see character 2"),
        ({"regex": "(" * 5000 + "CANARY" + ")" * 5000}, "regex", "is nested too deep"),
        ({"regex": "a{99999999999}"}, "regex", "repeats too often"),
        ({"regex": "CANARY\0"}, "regex", "contains a NUL character"),
        ({"grammar": " \n"}, "grammar", "is empty"),
        ({"grammar": "CANARY" * 9000}, "grammar", "has 54000 bytes; allowed: 32768"),
        ({"choice": pb.Choice()}, "choice.options", "has 0 entries"),
        ({"choice": pb.Choice(options=["CANARY", ""])}, "choice.options[1]", "is empty"),
        ({"choice": pb.Choice(options=["CANARY"] * 1025)}, "choice.options", "has 1025 entries; allowed: 1 to 1024"),
        ({"choice": pb.Choice(options=["ü" * 10_000] * 2)}, "choice.options", "has 40000 bytes"),
    ],
)
def test_bad_ones_are_named_and_not_repeated(fields, field, reason):
    def both(params: pb.StructuredOutput) -> None:
        structured(params)
        check(params)

    with pytest.raises(InvalidInput) as caught:
        both(pb.StructuredOutput(**fields))
    assert caught.value.field == f"sampling.structured_output.{field}".rstrip(".")
    assert reason in caught.value.description
    assert "CANARY" not in str(caught.value)
