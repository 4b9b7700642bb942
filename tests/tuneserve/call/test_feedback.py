"""`tuneserve call feedback`: what is sent and what is printed."""

import json

import pytest
from google.protobuf import json_format

from .conftest import Server, call

GOOD = ("feedback", "--model", "m", "--request", "r-1")


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (["--label", "pos"], {"label": {"text": "why?", "labels": ["pos"]}}),
        (["--label", "a", "--label", "b"], {"label": {"text": "why?", "labels": ["a", "b"]}}),
        (["--no-label"], {"label": {"text": "why?"}}),
        (["--label", "pos", "--pair", "so"], {"label": {"text": "why?", "text_pair": "so", "labels": ["pos"]}}),
        (
            ["--answer", "5", "--correction", "4", "--bad"],
            {
                "answer": {
                    "prompt": {"chat": {"messages": [{"role": "user", "content": "why?"}]}},
                    "answer": "5",
                    "correction": "4",
                    "good": False,
                }
            },
        ),
        (["--answer", "5", "--plain", "--good"], {"answer": {"prompt": {"text": "why?"}, "answer": "5", "good": True}}),
        (
            ["--chosen", "b", "--ignored", "a", "--ignored", "c"],
            {"click": {"query": "why?", "chosen": "b", "ignored": ["a", "c"]}},
        ),
    ],
)
def test_each_form_is_sent_as_it_is(server: Server, target: str, options: list[str], sent: dict[str, object]) -> None:
    result = call(target, *GOOD, *options, "why?")
    assert result.exit_code == 0, result.output
    assert result.stdout == "rows kept: 2\n"
    asked = json_format.MessageToDict(server.request, preserving_proto_field_name=True)
    assert asked == {"request_id": "r-1", "model": "m", **sent}


@pytest.mark.parametrize("options", [[], ["--label", "a", "--answer", "b"], ["--label", "a", "--no-label"]])
def test_one_form_is_needed(target: str, options: list[str]) -> None:
    result = call(target, *GOOD, *options, "why?")
    assert result.exit_code == 2
    assert "give one of --label (or --no-label), --answer and --chosen" in result.output


def test_json(target: str) -> None:
    assert json.loads(call(target, *GOOD, "--label", "a", "--json", "why?").stdout) == {"rows": 2}
