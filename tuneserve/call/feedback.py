"""`tuneserve call feedback`: what somebody thinks of an answer, kept by the server as a row to train on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tuneserve.call.channel import connected
from tuneserve.call.common import client_options, model_option, print_json

if TYPE_CHECKING:
    from tuneserve.client.endpoint import Endpoint


@click.command("feedback")
@click.argument("text")
@model_option
@click.option("--request", "request_id", required=True, metavar="ID", help="The id of the request that was answered.")
@click.option("--label", "labels", multiple=True, help="The text's right label; of a multi-label model, once for each.")
@click.option("--no-label", is_flag=True, help="No label of a multi-label model is right.")
@click.option("--pair", default="", metavar="TEXT", help="The second text of a pair, with --label.")
@click.option("--answer", metavar="TEXT", help="What a chat model wrote when it was asked TEXT.")
@click.option("--plain", is_flag=True, help="With --answer: it was asked the text itself, without a chat template.")
@click.option("--correction", metavar="TEXT", help="With --answer: a better text in its place.")
@click.option("--good/--bad", default=None, help="With --answer: thumbs up or down.")
@click.option("--chosen", metavar="TEXT", help="What somebody who searched for TEXT chose.")
@click.option("--ignored", multiple=True, metavar="TEXT", help="With --chosen: a text passed over; once for each.")
@client_options()
def feedback_command(
    text: str,
    model: str,
    request_id: str,
    labels: Sequence[str],
    no_label: bool,
    pair: str,
    answer: str | None,
    plain: bool,
    correction: str | None,
    good: bool | None,
    chosen: str | None,
    ignored: Sequence[str],
    server: "Endpoint",
    as_json: bool,
) -> None:
    """Tell what you think of the answer to TEXT; the server keeps it as a row to train on.

    \b
    tuneserve call feedback --model sentiment --request r-1 --label negative "Not bad? It was awful."
    tuneserve call feedback --model chat --request r-2 --answer "5" --correction "4" "What is 2 + 2?"
    tuneserve call feedback --model chat --request r-3 --answer "4" --good "What is 2 + 2?"
    tuneserve call feedback --model reranker --request r-4 --chosen "Rayleigh" --ignored "Ozone" "blue sky"
    """
    from tuneserve.v1 import feedback_pb2 as pb
    from tuneserve.v1 import generation_pb2
    from tuneserve.v1.feedback_pb2_grpc import FeedbackServiceStub

    if (bool(labels or no_label) + (answer is not None) + (chosen is not None)) != 1 or (labels and no_label):
        raise click.UsageError("give one of --label (or --no-label), --answer and --chosen")
    request = pb.FeedbackRequest(request_id=request_id, model=model)
    if answer is not None:
        chat = generation_pb2.Chat(messages=[generation_pb2.ChatMessage(role="user", content=text)])
        prompt = generation_pb2.Prompt(text=text) if plain else generation_pb2.Prompt(chat=chat)
        request.answer.CopyFrom(pb.AnswerFeedback(prompt=prompt, answer=answer, correction=correction, good=good))
    elif chosen is not None:
        request.click.CopyFrom(pb.ClickFeedback(query=text, chosen=chosen, ignored=ignored))
    else:
        request.label.CopyFrom(pb.LabelFeedback(text=text, text_pair=pair, labels=labels))
    with connected(server) as channel:
        response = FeedbackServiceStub(channel).Feedback(request, **server.options)
    print_json(response) if as_json else click.echo(f"rows kept: {response.rows}")
