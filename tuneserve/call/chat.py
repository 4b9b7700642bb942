"""`tuneserve call chat`: one question to a chat model, answered as it is made."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuneserve.call.channel import connected
from tuneserve.call.common import client_options, model_option, print_json, stdin_text

if TYPE_CHECKING:
    from tuneserve.client.endpoint import Endpoint
    from tuneserve.v1 import generation_pb2


@click.command("chat")
@click.argument("question", required=False)
@model_option
@click.option("--adapter", default="", metavar="NAME", help="The LoRA adapter to answer with. Default: none.")
@click.option("--system", metavar="TEXT", help="What the model is told before the question.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="The most tokens to answer.")
@click.option("--temperature", type=float, help="0 takes the likeliest token each time.  [default: the server's, 1]")
@click.option("--json-schema", metavar="FILE|JSON", help="Answer JSON of this schema: a file, or the schema itself.")
@click.option("--regex", metavar="PATTERN", help="Answer a text that matches this, as a whole.")
@click.option("--choice", "choices", multiple=True, metavar="TEXT", help="Answer one of these; once for each.")
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
    server: "Endpoint",
    as_json: bool,
) -> None:
    """Ask a chat model one QUESTION; the answer is printed as it is made.

    Standard input is read whole, when no QUESTION is given.

    \b
    tuneserve call chat --model chat "Why is the sky blue?"
    tuneserve call chat --model chat --choice yes --choice no "Is 91 a prime?"
    tuneserve call chat --model chat --json-schema person.json < letter.txt
    """
    from tuneserve.v1 import generation_pb2 as pb
    from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

    messages = [pb.ChatMessage(role="system", content=system)] if system else []
    messages.append(pb.ChatMessage(role="user", content=stdin_text("QUESTION") if question is None else question))
    request = pb.GenerateRequest(
        model=model,
        prompt=pb.Prompt(chat=pb.Chat(messages=messages)),
        sampling=pb.SamplingParams(
            max_tokens=max_tokens, temperature=temperature, structured_output=_form(json_schema, regex, choices)
        ),
        adapter=adapter,
    )
    printed, cut = False, False
    with connected(server) as channel:
        try:
            for response in GenerationServiceStub(channel).GenerateStream(request, **server.options):
                if as_json:
                    print_json(response, indent=None)
                    continue
                for completion in response.completions:
                    click.echo(completion.text, nl=False)
                    printed = True
                    cut = completion.finish_reason == pb.FINISH_REASON_LENGTH
        finally:
            if printed:
                click.echo()
    if cut:
        click.echo(f"(cut off: the answer reached --max-tokens {max_tokens} or the model's length)", err=True)


def _form(
    json_schema: str | None, regex: str | None, choices: Sequence[str]
) -> "generation_pb2.StructuredOutput | None":
    """Returns the form that the answer must have, if any."""
    from tuneserve.v1 import generation_pb2 as pb

    if sum(bool(one) for one in (json_schema, regex, choices)) > 1:
        raise click.UsageError("--json-schema, --regex and --choice: give one of them")
    if json_schema:
        return pb.StructuredOutput(json_schema=_schema(json_schema))
    if regex:
        return pb.StructuredOutput(regex=regex)
    return pb.StructuredOutput(choice=pb.Choice(options=choices)) if choices else None


def _schema(given: str) -> str:
    if given.lstrip().startswith("{"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise click.UsageError(f"--json-schema: {given}: {reason}") from None
