"""Calls that a model has to make: the form that its answer then has, and what an answer of that form says.

The form is a JSON array of {"name": …, "arguments": {…}}. Nothing else can be written, so any model can be asked for
it, one without a tool parser, too.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from secrets import token_hex
from typing import Any

from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.engine.interface import Parts, ToolCall

_FIELD = "prompt.chat.tools"
# Where references within a schema lead: to its root, which is another one here.
_DEFINITIONS = ("$defs", "definitions")
_HEAD = re.compile(r'[\s\[,}]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
_NOTATION = re.compile(r"[\s\[\]{},]*")


def schema(tools: Sequence[Mapping[str, Any]], name: str) -> str:
    """Returns a JSON Schema for calls of these tools, or for one call of the tool of that name. Raises InvalidInput."""
    functions = [_function(tool, f"{_FIELD}[{index}]") for index, tool in enumerate(tools)]
    chosen = [function for function in functions if name in ("", function["name"])]
    if not chosen:
        raise InvalidInput("prompt.chat.tool_choice.name", "is the name of none of the tools")
    definitions: dict[str, dict[str, Any]] = {}
    calls = [_call(function, definitions) for function in chosen]
    form = {"type": "array", "items": {"anyOf": calls}, "minItems": 1, **({"maxItems": 1} if name else {})}
    return json.dumps({**form, **definitions}, ensure_ascii=False)


def _function(tool: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidInput(where, "has no name of a function, which TOOL_CHOICE_MODE_REQUIRED needs")
    return function


def _call(function: Mapping[str, Any], definitions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    given = function.get("parameters")
    parameters = {"type": "object", **(given if isinstance(given, dict) else {})}
    parameters.pop("$schema", None)
    for key in _DEFINITIONS:
        found = parameters.pop(key, {})
        known = definitions.setdefault(key, {}) if found else {}
        if not isinstance(found, dict) or any(known.get(name, one) != one for name, one in found.items()):
            raise InvalidInput(_FIELD, f"have {key} of one name that differ, which TOOL_CHOICE_MODE_REQUIRED rules out")
        known.update(found)
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


class RequiredCalls:
    """Reads an answer of that form; see interface.AnswerParser."""

    def __init__(self) -> None:
        self._index = -1
        self._head = ""  # what is read of a call before its arguments
        self._depth = 0  # of the arguments, while they are read
        self._in_text = self._escaped = False

    def whole(self, text: str, token_ids: Sequence[int]) -> Parts:
        """Returns all calls."""
        calls: dict[int, ToolCall] = {}
        parts = self.more(text, token_ids, True)
        for call in parts.tool_calls:
            before = calls.setdefault(call.index, replace(call, arguments=""))
            calls[call.index] = replace(before, arguments=before.arguments + call.arguments)
        return Parts(parts.text, tool_calls=list(calls.values()))

    def more(self, text: str, token_ids: Sequence[int], finished: bool) -> Parts:
        """Returns what is new of the calls."""
        calls: list[ToolCall] = []
        while text:
            if not self._depth:
                self._head += text
                if not (head := _HEAD.match(self._head)) or head.end() == len(self._head):
                    break
                text, self._head = self._head[head.end() :], ""
                self._index += 1
                calls.append(ToolCall(self._index, f"call_{token_hex(12)}", json.loads(head[1])))
            end = self._end(text)
            calls.append(ToolCall(self._index, arguments=text[:end]))
            text = text[end:]
        # Cut off before its arguments: that is no call.
        left = self._head if finished and not _NOTATION.fullmatch(self._head) else ""
        return Parts(left, tool_calls=calls)

    def _end(self, text: str) -> int:
        """Returns where the arguments end in a text that they begin or go on with; its length when they do not."""
        for index, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped, self._in_text = char == "\\", char != '"'
            elif char == '"':
                self._in_text = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    return index + 1
        return len(text)
