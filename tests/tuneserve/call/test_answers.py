"""What chat and generate share: options of answers, and printing them as they arrive."""

import json

from tuneserve.v1 import (
    generation_pb2,
)

from .conftest import Server, call


def test_chat_with_an_adapter_and_a_form(server: Server, target: str, tmp_path) -> None:
    def form(*options: str) -> generation_pb2.StructuredOutput:
        result = call(target, "chat", "--model", "chat", "--adapter", "polite", *options, "Why?")
        assert result.exit_code == 0, result.stderr
        return server.request.sampling.structured_output

    (tmp_path / "schema.json").write_text('{"type": "object"}')
    assert form("--json-schema", str(tmp_path / "schema.json")).json_schema == '{"type": "object"}'
    assert server.request.adapter == "polite"
    assert form("--json-schema", '{"type": "array"}').json_schema == '{"type": "array"}'
    assert form("--regex", "a+").regex == "a+"
    assert list(form("--choice", "yes", "--choice", "no, thanks").choice.options) == ["yes", "no, thanks"]
    form()
    assert not server.request.sampling.HasField("structured_output")
    for wrong in (("--regex", "a", "--choice", "b"), ("--json-schema", str(tmp_path / "none.json"))):
        result = call(target, "chat", "--model", "chat", *wrong, "Why?")
        assert result.exit_code == 2
        assert "--json-schema" in result.stderr


def test_chat_says_when_it_was_cut_off(target: str) -> None:
    result = call(target, "chat", "--model", "chat", "--max-tokens", "3", "Why?")
    assert result.stdout == "The sky is [bold] blue.\n"
    assert "cut off" in result.stderr


def test_chat_as_json_is_one_message_a_line(target: str) -> None:
    lines = call(target, "chat", "--model", "chat", "--json", "Why?").stdout.splitlines()
    texts = [json.loads(line)["completions"][0]["text"] for line in lines]
    assert texts == ["The sky", " is [bold]", " blue.", ""]


def test_an_error_inside_a_stream_comes_after_the_text(target: str) -> None:
    result = call(target, "chat", "--model", "breaks", "Why?")
    assert result.exit_code == 1
    assert result.stdout == "The sky\n"
    assert result.stderr == "error: internal error, request abc (INTERNAL)\n"
