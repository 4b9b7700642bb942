"""tuneserve call generate."""

import json

from click.testing import CliRunner

from tuneserve.call.command import call_command
from tuneserve.v1 import (
    generation_pb2,
)

from .conftest import Server, call


def test_generate(server: Server, target: str) -> None:
    result = call(target, "generate", "--model", "poet", "--adapter", "terse", "--temperature", "0", " Once\n", "Then")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "The sky is [bold] blue.\n" * 2, "")
    # The last of the two, and a prompt as it was given.
    assert server.request.prompt == generation_pb2.Prompt(text="Then")
    assert (server.request.model, server.request.adapter, server.request.sampling.max_tokens) == ("poet", "terse", 512)
    assert server.request.sampling.HasField("temperature")
    call(target, "generate", "--model", "poet", "--choice", "yes", " Once\n")
    assert server.request.prompt.text == " Once\n"
    assert list(server.request.sampling.structured_output.choice.options) == ["yes"]
    cut = call(target, "generate", "--model", "poet", "--max-tokens", "3", "Once")
    assert cut.stderr == "(cut off: the answer reached --max-tokens 3 or the model's length)\n"


def test_generate_from_standard_input(server: Server, target: str) -> None:
    given = CliRunner().invoke(
        call_command, ["generate", "--model", "poet", "--target", target, "--json"], input="  Once\n\n"
    )
    assert [json.loads(line)["completions"][0]["text"] for line in given.stdout.splitlines()][:1] == ["The sky"]
    assert server.request.prompt.text == "  Once\n"
    empty = CliRunner().invoke(call_command, ["generate", "--model", "poet", "--target", target], input="\n")
    assert (empty.exit_code, "no PROMPT given, and standard input is empty" in empty.stderr) == (2, True)
