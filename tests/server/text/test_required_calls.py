"""Calls that must be made: the form of the answer, and answers of that form in pieces of every size."""

import json

import pytest
from jsonschema import Draft202012Validator

from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.text.required_calls import RequiredCalls, schema

WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": WEATHER}, {"name": "now"}]
CALLS = [
    {"name": "weather", "arguments": {"city": 'a "b" \\ }]{[', "deep": [{"a": [1, {}]}]}},
    {"name": "now", "arguments": {}},
    {"name": 'odd "name"', "arguments": {"é": "東京"}},
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_calls_are_read_in_pieces(size, indent):
    text = json.dumps(CALLS, indent=indent, ensure_ascii=False)
    reader, names, arguments = RequiredCalls(), {}, {}
    for start in range(0, len(text), size):
        parts = reader.more(text[start : start + size], [1], start + size >= len(text))
        assert (parts.text, parts.reasoning) == ("", "")
        for call in parts.tool_calls:
            if call.name:
                names[call.index] = call.name
                assert call.id
            arguments[call.index] = arguments.get(call.index, "") + call.arguments
    assert list(names.values()) == [call["name"] for call in CALLS]
    assert [json.loads(one) for one in arguments.values()] == [call["arguments"] for call in CALLS]
    whole = RequiredCalls().whole(text, [1]).tool_calls
    assert [(call.index, call.name, call.arguments) for call in whole] == [
        (index, names[index], arguments[index]) for index in names
    ]
    assert len({call.id for call in whole}) == len(CALLS)


def test_what_was_cut_off():
    text = json.dumps(CALLS)
    parts = RequiredCalls().whole(text[: text.index('"now"') + 3], [1])
    assert [call.name for call in parts.tool_calls] == ["weather"]
    assert parts.text.endswith('{"name": "no')
    parts = RequiredCalls().whole(text[:50], [1])
    assert (parts.text, text[:50].endswith(parts.tool_calls[0].arguments)) == ("", True)


def test_what_has_another_form_is_text():
    assert RequiredCalls().whole("Sunny.", [1]).text == "Sunny."


def test_the_form_takes_calls_of_the_tools_alone():
    one = Draft202012Validator(json.loads(schema(TOOLS, "")))
    assert one.is_valid([CALLS[1], {"name": "weather", "arguments": {"city": "Lisbon"}}])
    for wrong in ([], {}, [CALLS[2]], [{"name": "weather"}], [{"name": "weather", "arguments": {"city": 1}}]):
        assert not one.is_valid(wrong)
    named = Draft202012Validator(json.loads(schema(TOOLS, "now")))
    assert named.is_valid([CALLS[1]])
    assert not named.is_valid([CALLS[1]] * 2)
    assert not named.is_valid([{"name": "weather", "arguments": {}}])


def test_definitions_stay_where_references_find_them():
    parameters = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "properties": {"a": {"$ref": "#/$defs/Size"}},
        "$defs": {"Size": {"enum": [1, 2]}},
    }
    tools = [{"name": "a", "parameters": parameters}, {"name": "b", "parameters": parameters}]
    form = Draft202012Validator(json.loads(schema(tools, "")))
    assert form.is_valid([{"name": "b", "arguments": {"a": 2}}])
    assert not form.is_valid([{"name": "b", "arguments": {"a": 3}}])
    other = {**parameters, "$defs": {"Size": {"enum": [3]}}}
    with pytest.raises(InvalidInput, match=r"^prompt\.chat\.tools: have different \$defs of the same name"):
        schema([*tools, {"name": "c", "parameters": other}], "")


@pytest.mark.parametrize("tool", [{}, {"name": 3}, {"name": ""}, {"function": "a"}, {"type": "code_interpreter"}])
def test_a_tool_without_a_name_is_refused(tool):
    with pytest.raises(InvalidInput, match=r"^prompt\.chat\.tools\[1\]: has no name"):
        schema([TOOLS[0], tool], "")


def test_a_name_is_one_of_the_tools():
    with pytest.raises(InvalidInput, match=r"^prompt\.chat\.tool_choice\.name: "):
        schema(TOOLS, "later")
