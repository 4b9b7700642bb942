"""`tuneserve index` and `tuneserve call search`: documents into an index of a server, and passages out of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuneserve.call.channel import connected
from tuneserve.call.common import client_options, print_json, print_table, server_options
from tuneserve.errors import UserError

if TYPE_CHECKING:
    from tuneserve.client.endpoint import Endpoint
    from tuneserve.v1 import answer_pb2

# What goes into one call: its documents are written together.
_DOCUMENTS, _BYTES = 64, 1 << 18
_COLUMNS = ("id", "title", "text", "metadata", "readers", "reply")
_METADATA = "metadata."
_FORMATS = "jsonl", "csv", "parquet"

readers_option = click.option(
    "--reader", "readers", multiple=True, metavar="NAME", help="For whom: a name or group; once for each."
)
filters_option = click.option(
    "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only documents with this metadata; once for each."
)
index_option = click.option("--index", required=True, metavar="NAME", help="The index's name at the server.")


@click.command("index")
@click.argument("name")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@server_options(timeout=300.0)
def index_command(name: str, files: Sequence[Path], server: "Endpoint") -> None:
    """Write the documents in FILES (jsonl, csv, tsv, parquet) to the index NAME of a running server.

    \b
    tuneserve index docs faq.jsonl handbook.csv
    tuneserve call search --index docs "Who pays the deposit?"

    A row has id and text, and perhaps title, metadata (an object of texts; metadata.KEY in a table), readers (a list;
    in a CSV file separated by semicolons) and reply. A document replaces the one of the same id; equal ones cost
    nothing, so an interrupted run is just repeated.
    """
    from tuneserve.v1 import answer_pb2 as pb
    from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub

    done = pb.UpsertDocumentsResponse()
    with connected(server) as channel:
        upsert = AnswerServiceStub(channel).UpsertDocuments
        for documents in _calls(_documents(files)):
            response = upsert(pb.UpsertDocumentsRequest(index=name, documents=documents), **server.options)
            done.written += response.written
            done.unchanged += response.unchanged
            done.index_version = response.index_version
    if not done.index_version:
        raise UserError(f"{', '.join(map(str, files))}: no documents", "one a row, with id and text")
    click.echo(f"{name}: {done.written} documents written, {done.unchanged} unchanged, version {done.index_version}")


@click.command("search")
@click.argument("query", default="")
@index_option
@click.option("--liked", multiple=True, metavar="ID", help="Find more like this document; once for each.")
@click.option("--disliked", multiple=True, metavar="ID", help="Find less like this document; once for each.")
@click.option("--limit", type=click.IntRange(1, 100), help="Print only this many passages, best first. Default: 10.")
@readers_option
@filters_option
@click.option("--no-rerank", is_flag=True, help="Do not ask the index's ranking model.")
@client_options()
def search_command(
    query: str,
    index: str,
    liked: Sequence[str],
    disliked: Sequence[str],
    limit: int | None,
    readers: Sequence[str],
    filters: Sequence[str],
    no_rerank: bool,
    server: "Endpoint",
    as_json: bool,
) -> None:
    """Find the passages in an index that fit QUERY best, or documents that were liked, or both."""
    from tuneserve.v1 import answer_pb2 as pb
    from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub

    request = pb.SearchRequest(
        index=index,
        query=query,
        liked=liked,
        disliked=disliked,
        readers=readers,
        filters=filters_of(filters),
        limit=limit,
        rerank=False if no_rerank else None,
    )
    with connected(server) as channel:
        response = AnswerServiceStub(channel).Search(request, **server.options)
    if as_json:
        return print_json(response)
    if not response.passages:
        return click.echo("No passage fits, of those that the reader may read.", err=True)
    print_table(
        ["score", "document", "characters", "text"],
        [
            [f"{one.score:.4f}", one.document_id, f"{one.start}-{one.end}", " ".join(f"{one.title} {one.text}".split())]
            for one in response.passages
        ],
    )


def filters_of(texts: Sequence[str]) -> "list[answer_pb2.Filter]":
    """Returns the conditions that --filter was given. Raises UsageError."""
    from tuneserve.v1 import answer_pb2 as pb

    values: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.UsageError(f"--filter {text}: expected KEY=VALUE")
        values.setdefault(key, []).append(value)
    return [pb.Filter(key=key, values=some) for key, some in values.items()]


def _calls(documents: "Iterator[answer_pb2.Document]") -> "Iterator[list[answer_pb2.Document]]":
    some: list[answer_pb2.Document] = []
    size = 0
    for one in documents:
        if some and (len(some) == _DOCUMENTS or size + one.ByteSize() > _BYTES):
            yield some
            some, size = [], 0
        some.append(one)
        size += one.ByteSize()
    if some:
        yield some


def _documents(files: Sequence[Path]) -> "Iterator[answer_pb2.Document]":
    from tuneserve import formats

    for file in files:
        if formats.FORMATS.get(file.suffix.lower()) not in _FORMATS:
            raise UserError(f"{file}: no known suffix", "allowed: .jsonl, .json, .csv, .tsv, .parquet")
        for where, row in formats.read(str(file.resolve())):
            try:
                yield _document(row)
            except ValueError as error:
                raise UserError(f"{where}: {error}", f"columns: {', '.join(_COLUMNS)}") from None


def _document(row: Mapping[str, Any] | str) -> "answer_pb2.Document":
    """Raises ValueError with the reason why a row is not a document."""
    from tuneserve.v1 import answer_pb2 as pb

    if isinstance(row, str):
        raise ValueError(row)
    given = {key: value for key, value in row.items() if value is not None}
    # Not left out in silence: a mistyped `readers` would show the document to everybody.
    if unknown := [key for key in given if key not in _COLUMNS and not key.startswith(_METADATA)]:
        raise ValueError(f"unknown column {unknown[0]!r}")
    for key in ("id", "text"):
        if not str(given.get(key, "")).strip():
            raise ValueError(f"{key} is missing or blank")
    metadata = _object(given.get("metadata", {}))
    metadata |= {key.removeprefix(_METADATA): value for key, value in given.items() if key.startswith(_METADATA)}
    texts = {key: _text(key, given[key]) for key in ("id", "title", "text", "reply") if key in given}
    return pb.Document(
        **{key: text for key, text in texts.items() if text or key != "reply"},
        metadata={key: _text(f"metadata.{key}", value) for key, value in metadata.items() if value is not None},
        readers=_list(given.get("readers", [])),
    )


def _text(key: str, value: Any) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{key} is not text")


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):  # in a CSV file
        value = json.loads(value or "{}")
    # Parquet has maps as lists of pairs.
    if isinstance(value, list) and all(isinstance(one, tuple) and len(one) == 2 for one in value):
        value = dict(value)
    if not isinstance(value, dict):
        raise ValueError("metadata is not an object")
    return dict(value)


def _list(value: Any) -> list[str]:
    if isinstance(value, str):
        return [one.strip() for one in value.split(";") if one.strip()]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("readers is not a list of texts")
    return value
