"""`tuneserve call chat`: one question to a chat model, with the answer streamed."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tuneserve.call.answers import answer_options, given_text, print_answers
from tuneserve.call.common import client_options, model_option, stdin_text

if TYPE_CHECKING:
    from google.protobuf import struct_pb2

    from tuneserve.client.endpoint import Endpoint
    from tuneserve.v1 import generation_pb2


@click.command("chat")
@click.argument("question", required=False)
@model_option
@click.option("--system", metavar="TEXT", help="The system message.")
@answer_options
@click.option(
    "--tool",
    "tools",
    multiple=True,
    metavar="FILE|JSON",
    help="A function that the model may call, by its JSON: name, description, parameters; once for each.",
)
@client_options()
def chat_command(
    question: str | None,
    model: str,
    system: str | None,
    tools: Sequence[str],
    request: "generation_pb2.GenerateRequest",
    server: "Endpoint",
    as_json: bool,
) -> None:
    """Ask a chat model one QUESTION; the answer is printed as it is generated.

    Without QUESTION, all of standard input is the question. Reasoning goes to standard error, if the server separates
    it from the answer; tool calls are printed as NAME(ARGUMENTS).

    \b
    tuneserve call chat --model chat "Why is the sky blue?"
    tuneserve call chat --model chat --choice yes --choice no "Is 91 a prime?"
    tuneserve call chat --model chat --json-schema person.json < letter.txt
    tuneserve call chat --model chat --tool weather.json "Will it rain in Lisbon?"
    """
    from tuneserve.v1 import generation_pb2 as pb

    messages = [pb.ChatMessage(role="system", content=system)] if system else []
    messages.append(pb.ChatMessage(role="user", content=stdin_text("QUESTION") if question is None else question))
    request.model = model
    request.prompt.chat.MergeFrom(pb.Chat(messages=messages, tools=[_tool(one) for one in tools]))
    print_answers([request], server, as_json)


def _tool(given: str) -> "struct_pb2.Struct":
    """Returns a tool in the form that chat templates expect."""
    from google.protobuf import json_format, struct_pb2

    try:
        tool = json.loads(given_text("--tool", given))
        return json_format.ParseDict(
            tool if "function" in tool else {"type": "function", "function": tool}, struct_pb2.Struct()
        )
    except (ValueError, TypeError, json_format.ParseError):
        raise click.UsageError(f"--tool: {given}: not a JSON object") from None
