"""`tuneserve call observe` and `examples`: texts for a monitor, as they come, and the last ones of a topic and a
sentiment.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from tuneserve.call.channel import CallFailed, CallRefused, connected
from tuneserve.call.common import client_options, print_json, print_table, truncate_option, truncation

if TYPE_CHECKING:
    from tuneserve.client.endpoint import Endpoint
    from tuneserve.v1 import classification_pb2, monitor_pb2

_DAY = 86400.0

monitor_option = click.option("--monitor", required=True, metavar="NAME", help="A monitor of the server's settings.")


@click.command("observe")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@monitor_option
@truncate_option
@client_options(timeout=_DAY)
def observe_command(texts: Sequence[str], monitor: str, truncate: bool, server: "Endpoint", as_json: bool) -> None:
    """Find and count the topic and the sentiment of each TEXT.

    Without TEXT, standard input is read as it comes, one text a line, and each answer is printed when it is ready.

    \b
    tail --follow news.txt | tuneserve call observe --monitor news --truncate
    """
    from google.rpc import code_pb2

    from tuneserve.v1 import monitor_pb2 as pb
    from tuneserve.v1.monitor_pb2_grpc import MonitorServiceStub

    if not texts and sys.stdin.isatty():
        raise click.UsageError("no TEXT given, and standard input is a terminal")
    waiting: dict[int, str] = {}
    failed = 0

    def requests() -> "Iterator[monitor_pb2.ObserveStreamRequest]":
        for number, line in enumerate(texts or sys.stdin, 1):
            if text := line.strip():
                waiting[number] = text
                yield pb.ObserveStreamRequest(id=number, monitor=monitor, text=text, truncation=truncation(truncate))

    with connected(server) as channel:
        for answer in MonitorServiceStub(channel).ObserveStream(requests(), **server.options):
            text = waiting.pop(answer.id)
            if answer.error.code == code_pb2.NOT_FOUND:
                # Of the monitor: no other text would be counted either.
                raise CallRefused(answer.error.message)
            if answer.HasField("error"):
                failed += 1
                click.echo(f"error: text {answer.id}: {answer.error.message}", err=True)
            elif as_json:
                print_json(answer, indent=None)
            else:
                found = answer.observation
                topics = ", ".join(map(_shown, found.topics)) or "-"
                click.echo(f"{topics}\t{_shown(found.sentiment)}\t{text}")
    if failed:
        raise CallFailed(f"texts that were not counted: {failed}")


@click.command("examples")
@monitor_option
@click.option("--topic", required=True, metavar="LABEL", help="One of the monitor's topics.")
@click.option("--sentiment", required=True, metavar="LABEL", help="One of the monitor's sentiments.")
@client_options()
def examples_command(monitor: str, topic: str, sentiment: str, server: "Endpoint", as_json: bool) -> None:
    """Show the last texts of one topic and one sentiment that you sent to a monitor."""
    from tuneserve.v1 import monitor_pb2 as pb
    from tuneserve.v1.monitor_pb2_grpc import MonitorServiceStub

    request = pb.ExamplesRequest(monitor=monitor, topic=topic, sentiment=sentiment)
    with connected(server) as channel:
        response = MonitorServiceStub(channel).Examples(request, **server.options)
    if as_json:
        return print_json(response)
    print_table(["time", "text"], [[one.time.ToJsonString(), one.text] for one in response.examples])


def _shown(label: "classification_pb2.LabelScore") -> str:
    return f"{label.label} {label.score:.2f}"
