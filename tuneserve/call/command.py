"""`tuneserve call`: calls a running server from the shell, and prints the answer.

gRPC and rich are imported where they are used, so that other commands do not wait for them.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import click

from tuneserve.call.admin import admin_command, models_command
from tuneserve.call.answer import answer_command
from tuneserve.call.channel import connected
from tuneserve.call.chat import chat_command
from tuneserve.call.common import (
    client_options,
    lines_of_stdin,
    model_option,
    print_json,
    print_table,
    shown,
    truncate_option,
    truncation,
)
from tuneserve.call.documents import search_command
from tuneserve.call.evaluate import evaluate_command
from tuneserve.call.feedback import feedback_command
from tuneserve.call.generate import generate_command
from tuneserve.call.groups import Group
from tuneserve.call.monitor import examples_command, observe_command

if TYPE_CHECKING:
    from tuneserve.client.endpoint import Endpoint
    from tuneserve.v1 import classification_pb2


@click.group("call", cls=Group)
def call_command() -> None:
    """Call a running server from the shell.

    \b
    tuneserve call models
    tuneserve call classify --model sentiment "A quiet, beautifully shot film."
    tuneserve call classify --model chat --labels praise,complaint "My parcel never came."
    tuneserve call tokens --model ner "Maria flew from Lisbon to Toronto."
    tuneserve call chat --model chat "Why is the sky blue?"
    tuneserve call generate --model poet "Once upon a time"
    tuneserve call embed --model vectors --json "A text to find again."
    tuneserve call rank --model reranker "why is the sky blue" < passages.txt
    tuneserve call search --index docs "why is the sky blue"
    tuneserve call answer --index docs "why is the sky blue"
    tail --follow news.txt | tuneserve call observe --monitor news

    Without texts as arguments, standard input is read, one text a line. Exit status: 2 for bad input or an unknown
    model, 1 if the server can't answer.
    """


call_command.add_command(models_command)
call_command.add_command(chat_command)
call_command.add_command(generate_command)
call_command.add_command(search_command)
call_command.add_command(answer_command)
call_command.add_command(evaluate_command)
call_command.add_command(feedback_command)
call_command.add_command(observe_command)
call_command.add_command(examples_command)
call_command.add_command(admin_command)


@call_command.command("classify")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@model_option
@click.option("--pair", "pairs", multiple=True, metavar="TEXT", help="Second text of a pair; once for each text.")
@click.option("--top-k", type=click.IntRange(1), help="Print only this many labels, best first.")
@click.option("--labels", metavar="A,B,...", help="The labels to choose from, for a generation model (zero-shot).")
@click.option(
    "--example",
    "examples",
    multiple=True,
    metavar="LABEL=TEXT",
    help="A labelled text to show the model first, with --labels (few-shot); once for each.",
)
@click.option("--instruction", metavar="TEXT", help="The instruction for each text, with --labels.")
@click.option("--explain", is_flag=True, help="Print what each word adds to the best label's probability. Slow.")
@truncate_option
@client_options()
def classify_command(
    texts: Sequence[str],
    model: str,
    pairs: Sequence[str],
    top_k: int | None,
    labels: str | None,
    examples: Sequence[str],
    instruction: str | None,
    explain: bool,
    truncate: bool,
    server: "Endpoint",
    as_json: bool,
) -> None:
    """Label each TEXT."""
    from tuneserve.v1 import classification_pb2 as pb
    from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

    texts = texts or lines_of_stdin()
    if pairs and len(pairs) != len(texts):
        raise click.UsageError(f"--pair: given {len(pairs)} times for {len(texts)} texts; give one for each")
    request = pb.ClassifyRequest(
        model=model,
        inputs=[pb.ClassifyInput(text=text, text_pair=pair) for text, pair in zip_longest(texts, pairs)],
        top_k=top_k,
        labels=[label.strip() for label in labels.split(",")] if labels else [],
        examples=[_example(text) for text in examples],
        instruction=instruction,
        explain=pb.Explain() if explain else None,
        truncation=truncation(truncate),
    )
    with connected(server) as channel:
        response = ClassificationServiceStub(channel).Classify(request, **server.options)
    if as_json:
        return print_json(response)
    answers = list(zip(texts, response.results, strict=True))
    print_table(
        ["text", "label", "score"],
        [
            ["" if rank else shown(text, result.truncated), label.label, f"{label.score:.4f}"]
            for text, result in answers
            for rank, label in enumerate(result.labels)
        ],
    )
    if explain:
        click.echo()
        print_table(
            ["text", "word", "weight"],
            [
                ["" if rank else text, word.text, f"{word.weight:+.4f}"]
                for text, result in answers
                for rank, word in enumerate(result.weights)
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
@client_options()
def tokens_command(
    texts: Sequence[str], model: str, aggregation: str, truncate: bool, server: "Endpoint", as_json: bool
) -> None:
    """Find the labelled parts of each TEXT: names, places and the like."""
    from tuneserve.v1 import classification_pb2 as pb
    from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

    texts = texts or lines_of_stdin()
    request = pb.ClassifyTokensRequest(
        model=model,
        texts=texts,
        aggregation=f"AGGREGATION_{aggregation.upper()}",
        truncation=truncation(truncate),
    )
    with connected(server) as channel:
        response = ClassificationServiceStub(channel).ClassifyTokens(request, **server.options)
    if as_json:
        return print_json(response)
    rows = []
    for text, result in zip(texts, response.results, strict=True):
        spans = [[s.text, s.label, f"{s.score:.4f}", f"{s.start}-{s.end}"] for s in result.spans] or [["-"] * 4]
        rows += [["" if rank else shown(text, result.truncated), *span] for rank, span in enumerate(spans)]
    print_table(["text", "part", "label", "score", "characters"], rows)


@call_command.command("embed")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@model_option
@click.option("--prompt", metavar="NAME", help="A prompt of the model to put before each text: query, passage.")
@click.option(
    "--dimensions", type=click.IntRange(1), help="Keep only this many first dimensions, for models trained for it."
)
@click.option("--raw", is_flag=True, help="Vectors as the model outputs them. Default: scaled to length 1.")
@truncate_option
@client_options()
def embed_command(
    texts: Sequence[str],
    model: str,
    prompt: str | None,
    dimensions: int | None,
    raw: bool,
    truncate: bool,
    server: "Endpoint",
    as_json: bool,
) -> None:
    """Turn each TEXT into a vector. The table shows the first numbers of each; --json prints all."""
    from tuneserve.v1 import embedding_pb2 as pb
    from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub

    texts = texts or lines_of_stdin()
    request = pb.EmbedRequest(
        model=model,
        texts=texts,
        prompt_name=prompt,
        truncation=truncation(truncate),
        normalize=not raw,
        dimensions=dimensions,
    )
    with connected(server) as channel:
        response = EmbeddingServiceStub(channel).Embed(request, **server.options)
    if as_json:
        return print_json(response)
    print_table(
        ["text", "tokens", "dimensions", "begins with"],
        [
            [
                shown(text, result.truncated),
                str(result.token_count),
                str(len(result.values)),
                " ".join(f"{value:.4f}" for value in result.values[:4]),
            ]
            for text, result in zip(texts, response.results, strict=True)
        ],
    )


@call_command.command("rank")
@click.argument("query")
@click.argument("candidates", nargs=-1, metavar="[TEXT]...")
@model_option
@click.option("--top-k", type=click.IntRange(1), help="Print only this many texts, best first.")
@click.option("--label", metavar="NAME", help="The label to rank by, for a model with several.")
@truncate_option
@client_options()
def rank_command(
    query: str,
    candidates: Sequence[str],
    model: str,
    top_k: int | None,
    label: str | None,
    truncate: bool,
    server: "Endpoint",
    as_json: bool,
) -> None:
    """Order each TEXT by how well it fits QUERY, best first."""
    from tuneserve.v1 import classification_pb2 as pb
    from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

    candidates = candidates or lines_of_stdin()
    request = pb.RankRequest(
        model=model, query=query, candidates=candidates, top_k=top_k, label=label, truncation=truncation(truncate)
    )
    with connected(server) as channel:
        response = ClassificationServiceStub(channel).Rank(request, **server.options)
    if as_json:
        return print_json(response)
    print_table(["score", "text"], [[f"{result.score:.4f}", candidates[result.index]] for result in response.results])


def _example(text: str) -> "classification_pb2.ClassifyExample":
    from tuneserve.v1 import classification_pb2 as pb

    label, equals, shown_text = text.partition("=")
    if not label or not equals or not shown_text:
        raise click.UsageError(f"--example {text}: expected LABEL=TEXT")
    return pb.ClassifyExample(text=shown_text, label=label)
