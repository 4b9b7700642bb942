"""`tuneserve call chat`: one question to a chat model, with the answer streamed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuneserve.call.channel import connected
from tuneserve.call.common import client_options, model_option, print_json, stdin_text

if TYPE_CHECKING:
    from google.protobuf import struct_pb2

    from tuneserve.client.endpoint import Endpoint
    from tuneserve.v1 import generation_pb2


@click.command("chat")
@click.argument("question", required=False)
@model_option
@click.option("--adapter", default="", metavar="NAME", help="The LoRA adapter to answer with. Default: none.")
@click.option("--system", metavar="TEXT", help="The system message.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="The most tokens to answer.")
@click.option("--temperature", type=float, help="0 always takes the most likely token.  [default: the server's, 1]")
@click.option("--json-schema", metavar="FILE|JSON", help="Answer JSON of this schema: a file, or the schema itself.")
@click.option("--regex", metavar="PATTERN", help="Answer a text that matches this as a whole.")
@click.option("--choice", "choices", multiple=True, metavar="TEXT", help="Answer one of these; once for each.")
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
    adapter: str,
    system: str | None,
    max_tokens: int,
    temperature: float | None,
    json_schema: str | None,
    regex: str | None,
    choices: Sequence[str],
    tools: Sequence[str],
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
    from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

    messages = [pb.ChatMessage(role="system", content=system)] if system else []
    messages.append(pb.ChatMessage(role="user", content=stdin_text("QUESTION") if question is None else question))
    request = pb.GenerateRequest(
        model=model,
        prompt=pb.Prompt(chat=pb.Chat(messages=messages, tools=[_tool(one) for one in tools])),
        sampling=pb.SamplingParams(
            max_tokens=max_tokens, temperature=temperature, structured_output=_form(json_schema, regex, choices)
        ),
        adapter=adapter,
    )
    answer, cut = _Answer(), False
    with connected(server) as channel:
        try:
            for response in GenerationServiceStub(channel).GenerateStream(request, **server.options):
                if as_json:
                    print_json(response, indent=None)
                    continue
                for completion in response.completions:
                    answer.show(completion)
                    cut = completion.finish_reason == pb.FINISH_REASON_LENGTH
        finally:
            answer.end()
    if cut:
        click.echo(f"(cut off: the answer reached --max-tokens {max_tokens} or the model's length)", err=True)


class _Answer:
    """Prints an answer as it arrives, and ends each of its parts with a line break."""

    def __init__(self) -> None:
        self._part = ""

    def show(self, completion: "generation_pb2.Completion") -> None:
        """Prints the new part of an answer."""
        if completion.reasoning:
            self._begin("reasoning")
            click.secho(completion.reasoning, nl=False, err=True, dim=True)
        if completion.text:
            self._begin("text")
            click.echo(completion.text, nl=False)
        for call in completion.tool_calls:
            self._begin(f"call {call.index}")
            click.echo((f"{call.name}(" if call.name else "") + call.arguments, nl=False)

    def end(self) -> None:
        """Ends the last line."""
        self._begin("")

    def _begin(self, part: str) -> None:
        if self._part not in ("", part):
            click.echo(")" if self._part.startswith("call") else "", err=self._part == "reasoning")
        self._part = part


def _form(
    json_schema: str | None, regex: str | None, choices: Sequence[str]
) -> "generation_pb2.StructuredOutput | None":
    """Returns the structure that the answer must have, if any."""
    from tuneserve.v1 import generation_pb2 as pb

    if sum(bool(one) for one in (json_schema, regex, choices)) > 1:
        raise click.UsageError("--json-schema, --regex and --choice: give one of them")
    if json_schema:
        return pb.StructuredOutput(json_schema=_text("--json-schema", json_schema))
    if regex:
        return pb.StructuredOutput(regex=regex)
    return pb.StructuredOutput(choice=pb.Choice(options=choices)) if choices else None


def _tool(given: str) -> "struct_pb2.Struct":
    """Returns a tool in the form that chat templates expect."""
    from google.protobuf import json_format, struct_pb2

    try:
        tool = json.loads(_text("--tool", given))
        return json_format.ParseDict(
            tool if "function" in tool else {"type": "function", "function": tool}, struct_pb2.Struct()
        )
    except (ValueError, TypeError, json_format.ParseError):
        raise click.UsageError(f"--tool: {given}: not a JSON object") from None


def _text(option: str, given: str) -> str:
    """Returns the JSON that is given, or the content of the file that is named."""
    if given.lstrip().startswith("{"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise click.UsageError(f"{option}: {given}: {reason}") from None
