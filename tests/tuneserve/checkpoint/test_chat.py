"""Conversations as a template gets them: keys in one order, numbers as they were written."""

import json
from typing import Any

import pytest

from tuneserve.checkpoint import chat
from tuneserve.errors import UserError

from ... import tiny

TURNS = [{"role": "user", "content": "film"}, {"role": "assistant", "content": "good"}]


def test_the_keys_of_every_object_are_in_the_usual_order_and_all_others_by_name() -> None:
    given = {"zoo": 1, "parameters": {"b": [{"text": "t", "name": "n"}], "a": 2}, "name": "x", "type": "function"}
    assert json.dumps(chat.ordered(given)) == (
        '{"type": "function", "name": "x", "parameters": {"a": 2, "b": [{"name": "n", "text": "t"}]}, "zoo": 1}'
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [(2.0, "2"), (2.5, "2.5"), (-0.0, "0"), (1e20, "100000000000000000000"), (1e21, "1e+21"), (True, "true")],
)
def test_numbers_are_as_javascript_writes_them(value: Any, written: str) -> None:
    """JSON that came through a Struct has only floats."""
    assert json.dumps(chat.ordered([value])) == f"[{written}]"


def tokenizer(template: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tiny.byte_tokenizer(["<s>"]), chat_template=template)


def test_a_template_that_refuses_a_conversation_names_its_roles() -> None:
    refusing = tokenizer("{{ raise_exception('no') }}")
    with pytest.raises(UserError, match="can't render a conversation of user, assistant: no"):
        chat.token_ids(refusing, {}, TURNS, add_generation_prompt=False)


def test_only_what_the_template_marks_is_the_assistants() -> None:
    template = "{% for m in messages %}{% if m.role == 'assistant' %}START{{ m.content }}END{% else %}{{ m.content }}"
    template += "{% endif %}{% endfor %}"
    plain = tokenizer(template.replace("START", "").replace("END", ""))
    assert chat.assistant_mask(plain, {"messages": TURNS}) == []
    marking = tokenizer(template.replace("START", "{% generation %}").replace("END", "{% endgeneration %}"))
    mask = chat.assistant_mask(marking, {"messages": TURNS})
    ids = chat.token_ids(marking, {}, TURNS, add_generation_prompt=False)
    assert marking.decode([id_ for id_, is_answer in zip(ids, mask, strict=True) if is_answer]) == "good"
