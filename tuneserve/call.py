"""`tuneserve call`: one question to a running server, from the shell.

Sends what it was given and prints what came back. gRPC and rich are imported where they are used, so that the other
verbs do not wait for them.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tuneserve.client import connected

if TYPE_CHECKING:
    from google.protobuf.message import Message

Function = TypeVar("Function", bound=Callable[..., Any])


def client_options(command: Function) -> Function:
    """Adds what every command takes to reach the server."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the server's messages as JSON."),
        click.option(
            "--timeout",
            type=click.FloatRange(0.001),
            default=60.0,
            show_default=True,
            help="Seconds for the whole call.",
        ),
        click.option(
            "--target",
            default="localhost:8033",
            show_default=True,
            envvar="TUNESERVE_TARGET",
            show_envvar=True,
            metavar="HOST:PORT",
            help="The server.",
        ),
    ):
        command = option(command)
    return command


model_option = click.option("--model", required=True, metavar="NAME", help="The model's name at the server.")
truncate_option = click.option("--truncate", is_flag=True, help="Cut a text that is too long. Default: refuse it.")


@click.group("call")
def call_command() -> None:
    """Ask a running server from the shell.

    \b
    tuneserve call models
    tuneserve call classify --model sentiment "A quiet, beautifully shot film."
    tuneserve call tokens --model ner "Maria flew from Lisbon to Toronto."
    tuneserve call chat --model chat "Why is the sky blue?"

    Texts come from standard input, one a line, when none is given. Exit status: 2 for bad input or an unknown model,
    1 when the server can't answer.
    """


@call_command.command("models")
@client_options
def models_command(target: str, timeout: float, as_json: bool) -> None:
    """List the models of the server."""
    from tuneserve.checkpoint import TASK_NAMES
    from tuneserve.v1 import model_pb2
    from tuneserve.v1.model_pb2_grpc import ModelServiceStub

    with connected(target, timeout) as channel:
        response = ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest(), timeout=timeout)
    if as_json:
        return print_json(response)
    print_table(
        ["model", "task", "state", "version", "weights", "labels"],
        [
            [
                model.name,
                TASK_NAMES.get(model.task, "?"),
                model_pb2.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
                model.version,
                model.quantization or "not quantized",
                ", ".join(model.labels) or "-",
            ]
            for model in response.models
        ],
    )


@call_command.command("classify")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@model_option
@click.option("--pair", "pairs", multiple=True, metavar="TEXT", help="Second text of a pair; once for each text.")
@click.option("--top-k", type=click.IntRange(1), help="Print only this many labels, best first.")
@truncate_option
@client_options
def classify_command(
    texts: Sequence[str],
    model: str,
    pairs: Sequence[str],
    top_k: int | None,
    truncate: bool,
    target: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Label each TEXT."""
    from tuneserve.v1 import classification_pb2 as pb
    from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

    texts = texts or lines_of_stdin()
    if pairs and len(pairs) != len(texts):
        raise click.UsageError(f"--pair: given {len(pairs)} times for {len(texts)} texts; give one for each")
    inputs = [pb.ClassifyInput(text=text, text_pair=pair) for text, pair in zip_longest(texts, pairs)]
    request = pb.ClassifyRequest(model=model, inputs=inputs, top_k=top_k, truncation=_truncation(truncate))
    with connected(target, timeout) as channel:
        response = ClassificationServiceStub(channel).Classify(request, timeout=timeout)
    if as_json:
        return print_json(response)
    print_table(
        ["text", "label", "score"],
        [
            ["" if rank else _shown(text, result.truncated), label.label, f"{label.score:.4f}"]
            for text, result in zip(texts, response.results, strict=True)
            for rank, label in enumerate(result.labels)
        ],
    )


@call_command.command("tokens")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@model_option
@click.option(
    "--aggregation",
    type=click.Choice(["simple", "first", "average", "max"]),
    default="simple",
    show_default=True,
    help="How the labels of a word's tokens become the word's.",
)
@truncate_option
@client_options
def tokens_command(
    texts: Sequence[str], model: str, aggregation: str, truncate: bool, target: str, timeout: float, as_json: bool
) -> None:
    """Find the labelled parts of each TEXT: names, places and the like."""
    from tuneserve.v1 import classification_pb2 as pb
    from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

    texts = texts or lines_of_stdin()
    request = pb.ClassifyTokensRequest(
        model=model,
        texts=texts,
        aggregation=f"AGGREGATION_{aggregation.upper()}",
        truncation=_truncation(truncate),
    )
    with connected(target, timeout) as channel:
        response = ClassificationServiceStub(channel).ClassifyTokens(request, timeout=timeout)
    if as_json:
        return print_json(response)
    rows = []
    for text, result in zip(texts, response.results, strict=True):
        shown = _shown(text, result.truncated)
        spans = [[s.text, s.label, f"{s.score:.4f}", f"{s.start}-{s.end}"] for s in result.spans] or [["-"] * 4]
        rows += [["" if rank else shown, *span] for rank, span in enumerate(spans)]
    print_table(["text", "part", "label", "score", "characters"], rows)


@call_command.command("chat")
@click.argument("question", required=False)
@model_option
@click.option("--system", metavar="TEXT", help="What the model is told before the question.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="The most tokens to answer.")
@click.option("--temperature", type=float, help="0 takes the likeliest token each time.  [default: the server's, 1]")
@client_options
def chat_command(
    question: str | None,
    model: str,
    system: str | None,
    max_tokens: int,
    temperature: float | None,
    target: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Ask a chat model one QUESTION; the answer is printed as it is made. Standard input is read whole."""
    from tuneserve.v1 import generation_pb2 as pb
    from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

    messages = [pb.ChatMessage(role="system", content=system)] if system else []
    messages.append(pb.ChatMessage(role="user", content=stdin_text("QUESTION") if question is None else question))
    request = pb.GenerateStreamRequest(
        model=model,
        prompt=pb.Prompt(chat=pb.Chat(messages=messages)),
        sampling=pb.SamplingParams(max_tokens=max_tokens, temperature=temperature),
    )
    printed, cut = False, False
    with connected(target, timeout) as channel:
        try:
            for response in GenerationServiceStub(channel).GenerateStream(request, timeout=timeout):
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


def lines_of_stdin() -> list[str]:
    """Returns the lines of standard input that hold something."""
    return [line for line in stdin_text("TEXT").splitlines() if line.strip()]


def stdin_text(argument: str) -> str:
    """Returns standard input. Raises UsageError, naming `argument`, at a terminal or when there is nothing in it."""
    if sys.stdin.isatty():
        raise click.UsageError(f"no {argument} given, and standard input is a terminal")
    if not (text := sys.stdin.read().strip()):
        raise click.UsageError(f"no {argument} given, and standard input is empty")
    return text


def print_json(message: "Message", indent: int | None = 2) -> None:
    """Prints a message with the field names of the .proto files, fields that are zero included."""
    from google.protobuf import json_format

    click.echo(
        json_format.MessageToJson(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            ensure_ascii=False,
            indent=indent,
        )
    )


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows as wide as the terminal, or as they need where there is none. No cell is read as markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 1_000_000).print(table)


def _truncation(truncate: bool) -> str:
    return "TRUNCATION_END" if truncate else "TRUNCATION_REJECT"


def _shown(text: str, truncated: bool) -> str:
    return f"{text} (cut)" if truncated else text
