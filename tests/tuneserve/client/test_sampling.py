"""Sampling parameters and prompts as messages."""

import json
from typing import Any

import pytest

from tuneserve.client import generation, sampling, texts
from tuneserve.v1 import generation_pb2 as pb


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_a_choice_of_tools(choice):
    chat = sampling.prompt([{"role": "user", "content": "Rain?"}], tool_choice=choice).chat
    assert pb.ToolChoiceMode.Name(chat.tool_choice.mode) == f"TOOL_CHOICE_MODE_{choice.upper()}"


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"json_schema": {"type": "object"}}, "json_schema"),
        ({"json_schema": '{"type": "object"}'}, "json_schema"),
        ({"regex": "a+"}, "regex"),
        ({"choice": ["a", "b"]}, "choice"),
        ({"grammar": "root ::= 'a'"}, "grammar"),
    ],
)
def test_forms_of_an_answer(form: dict[str, Any], kind: str) -> None:
    sent: Any = generation.generate("m", "a", **form).request
    assert sent.sampling.structured_output.WhichOneof("constraint") == kind
    if kind == "json_schema":
        assert json.loads(sent.sampling.structured_output.json_schema) == {"type": "object"}
    with pytest.raises(ValueError, match="give one of them"):
        generation.generate("m", "a", **form | {"regex" if kind != "regex" else "choice": "b"})


def test_what_is_not_given_is_not_sent() -> None:
    sent: Any = generation.generate("m", "a").request
    assert sent.sampling.ByteSize() == 0
    assert not sent.HasField("priority")
    sent = texts.classify("m", "a").request
    assert {field.name for field, _ in sent.ListFields()} == {"model", "inputs", "truncation", "offset_unit"}
