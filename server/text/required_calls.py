"""Required tool calls: the JSON Schema that the answer must then match, and the parser of such answers.

The answer is a JSON array of {"name": …, "arguments": {…}}. The model can write nothing else, so this works for any
model, even without a tool parser.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from secrets import token_hex
from typing import Any

from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.engine.interface import Parts, ToolCall

_FIELD = "prompt.chat.tools"
# References within a schema start at its root, so these keys move to the new root.
_DEFINITIONS = ("$defs", "definitions")
_HEAD = re.compile(r'[\s\[,}]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
_NOTATION = re.compile(r"[\s\[\]{},]*")


def schema(tools: Sequence[Mapping[str, Any]], name: str) -> str:
    """Returns a JSON Schema for calls of these tools, or for one call of the tool of that name. Raises InvalidInput."""
    with Violations() as wrong:
        functions = [_function(wrong, tool, f"{_FIELD}[{index}]") for index, tool in enumerate(tools)]
        chosen = [function for function in functions if name in ("", function.get("name"))]
        if not chosen:
            wrong.add("prompt.chat.tool_choice.name", "is not the name of one of the tools")
    definitions: dict[str, dict[str, Any]] = {}
    calls = [_call(function, definitions) for function in chosen]
    form = {"type": "array", "items": {"anyOf": calls}, "minItems": 1, **({"maxItems": 1} if name else {})}
    return json.dumps({**form, **definitions}, ensure_ascii=False)


def _function(wrong: Violations, tool: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        wrong.add(where, "has no name for its function, which TOOL_CHOICE_MODE_REQUIRED needs")
        return {}
    return function


def _call(function: Mapping[str, Any], definitions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    given = function.get("parameters")
    parameters = {"type": "object", **(given if isinstance(given, dict) else {})}
    parameters.pop("$schema", None)
    for key in _DEFINITIONS:
        found = parameters.pop(key, {})
        known = definitions.setdefault(key, {}) if found else {}
        if not isinstance(found, dict) or any(known.get(name, one) != one for name, one in found.items()):
            raise InvalidInput(
                _FIELD, f"have different {key} of the same name, which TOOL_CHOICE_MODE_REQUIRED does not allow"
            )
        known.update(found)
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


class RequiredCalls:
    """Parses an answer with required calls; see interface.AnswerParser."""

    def __init__(self) -> None:
        self._index = -1
        self._head = ""  # the text of a call before its arguments, so far
        self._depth = 0  # nesting inside the arguments; 0 outside them
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
        """Returns the new parts of the calls."""
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
        # A call that is truncated before its arguments is not a call.
        left = self._head if finished and not _NOTATION.fullmatch(self._head) else ""
        return Parts(left, tool_calls=calls)

    def _end(self, text: str) -> int:
        """Returns where the arguments end in a text that begins inside them; its length if they do not end in it."""
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
