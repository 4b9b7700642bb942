"""`tuneserve call answer`: a question answered from the documents of an index, with citations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tuneserve.call.channel import connected
from tuneserve.call.common import client_options, print_json, print_table, stdin_text
from tuneserve.call.documents import filters_of, filters_option, index_option, readers_option

if TYPE_CHECKING:
    from tuneserve.client.endpoint import Endpoint
    from tuneserve.v1 import answer_pb2


@click.command("answer")
@click.argument("question", required=False)
@index_option
@click.option("--limit", type=click.IntRange(1, 20), help="Answer from this many passages. Default: 5.")
@readers_option
@filters_option
@client_options()
def answer_command(
    question: str | None,
    index: str,
    limit: int | None,
    readers: Sequence[str],
    filters: Sequence[str],
    server: "Endpoint",
    as_json: bool,
) -> None:
    """Answer QUESTION from the documents in an index, and say which parts of them the answer comes from.

    Without QUESTION, all of standard input is the question. If the documents have no answer, that is said on standard
    error, and nothing is printed. So is it if a generation model wrote a text that no citation shows to be from them.
    """
    from tuneserve.client.documents import AnswerParts
    from tuneserve.v1 import answer_pb2 as pb
    from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub

    asked = pb.AnswerMessage(role="user", content=stdin_text("QUESTION") if question is None else question)
    request = pb.AnswerRequest(index=index, messages=[asked], readers=readers, filters=filters_of(filters), limit=limit)
    parts = AnswerParts()
    with connected(server) as channel:
        for part in AnswerServiceStub(channel).Answer(request, **server.options):
            text = parts.add(part)
            if not as_json:
                click.echo(text, nl=False)
    answer = parts.joined()
    if as_json:
        return print_json(answer)
    if answer.end.outcome == pb.ANSWER_OUTCOME_NOT_FOUND:
        return click.echo("The documents have no answer.", err=True)
    click.echo("\n")
    if answer.end.outcome == pb.ANSWER_OUTCOME_UNGROUNDED:
        return click.echo("No citation: nothing shows that the documents say this.", err=True)
    print_table(["document", "characters", "says"], [_cited(answer, one) for one in answer.end.citations])


def _cited(answer: "answer_pb2.AnswerResponse", one: "answer_pb2.Citation") -> list[str]:
    said = " ".join(answer.text[one.start : one.end].split())
    return [one.document_id, f"{one.document_start}-{one.document_end}", said]
