"""`tuneserve call evaluate`: how well an index answers labelled queries, and the weight and the gate that fit."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuneserve.call.channel import connected
from tuneserve.call.common import print_table, server_options
from tuneserve.call.documents import index_option, readers_option
from tuneserve.errors import UserError

if TYPE_CHECKING:
    from tuneserve.client.endpoint import Endpoint
    from tuneserve.v1 import answer_pb2

# Searches at a time, and passages of each: all that the server finds.
_TOGETHER, _PASSAGES = 4, 100
# Half of the queries choose the weight, the others measure it.
_LEAST = 20
_METRICS = "ndcg@10", "mrr@10", "recall@10"


@dataclass(frozen=True)
class Query:
    """A query and the documents that answer it."""

    text: str
    answers: frozenset[str]


@click.command("evaluate")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@index_option
@readers_option
@click.option(
    "--gate",
    "gate_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write here what tells whether passages answer a question, for the index's `gate`. Replaces the file.",
)
@server_options()
def evaluate_command(
    file: Path, index: str, readers: Sequence[str], gate_file: Path | None, server: "Endpoint"
) -> None:
    """Measure an index by the queries in FILE (jsonl, csv, parquet), and find the `keyword_weight` and the gate that
    fit them.

    A row has query, and documents: the ids of those that answer it, as a list, or separated by semicolons; none if the
    index has no answer. Every other query chooses the weight, and the rest measure it. The gate is fitted to all, and
    measured by cross-validation. The weight belongs in the server's file, under `indexes`, and so does the name of the
    gate's file.
    """
    from tuneserve.evaluation import quality, searched, significance

    given = list(_queries(file))
    queries = [one for one in given if one.answers]
    if len(queries) < _LEAST:
        raise UserError(f"{file}: has {len(queries)} queries with documents", f"give {_LEAST} or more")
    found = [
        searched.Searched.of(response, query.answers)
        for query, response in zip(queries, _search(server, index, readers, queries, rerank=False), strict=True)
    ]
    choosing, held_out = found[::2], found[1::2]
    weight, single = searched.fitted(choosing), searched.fitted(choosing, (0.0, 1.0))
    both, better = f"both, keyword_weight {weight:g}", "words" if single else "vectors"
    weights = {"vectors": 0.0, "words": 1.0, both: weight}
    measured = {name: searched.measured(held_out, one) for name, one in weights.items()}
    answered = _search(server, index, readers, given, rerank=None)
    if by := answered[0].ranking_model_version:
        ranked = [response for query, response in zip(given, answered, strict=True) if query.answers]
        right = [
            searched.hits([one.document_id for one in response.passages], query.answers)
            for query, response in zip(queries[1::2], ranked[1::2], strict=True)
        ]
        measured[f"ranked by {by}"] = quality.retrieval(right, [len(query.answers) for query in queries[1::2]])
    rows = [[name, *(f"{metrics[key]:.4f}" for key in _METRICS)] for name, (metrics, _) in measured.items()]
    print_table(["by", "nDCG@10", "MRR@10", "recall@10"], rows)
    change = significance.compare("ndcg@10", measured[better][1], measured[both][1])
    click.echo(f"\n{len(held_out)} queries that did not choose the weight. nDCG@10 of both against {better} alone:")
    click.echo(f"{change.second - change.first:+.4f} (95 % interval {change.low:+.4f} to {change.high:+.4f})")
    _fit_gate(given, answered, weight, gate_file)


def _fit_gate(
    queries: "Sequence[Query]", found: "Sequence[answer_pb2.SearchResponse]", weight: float, file: Path | None
) -> None:
    from tuneserve.evaluation import gate_fitting, searched

    by, ranked_by = found[0].model_version, found[0].ranking_model_version
    rows = [
        row
        for place, (query, response) in enumerate(zip(queries, found, strict=True))
        for row in gate_fitting.seen(
            place, query.text, response.passages if ranked_by else searched.ordered(response, weight), query.answers
        )
    ]
    try:
        gate, got = gate_fitting.fitted(rows, by, ranked_by), gate_fitting.measured(rows)
    except ValueError:
        if file:
            raise UserError(
                f"{file}: not written: too few of the queries are answered, or the index is small"
            ) from None
        return
    click.echo(
        f"\nGate: AUROC {got['auroc']:.3f} (95 % interval {got['low']:.3f} to {got['high']:.3f}) on {len(rows)} "
        "cases, each judged by a gate that other queries fitted.\n"
        f"{got['passed']:.0%} of the answerable pass, {got['stopped']:.0%} of the others are stopped; "
        f"{got['replied']:.0%} would get the first document's reply, {got['replied_right']:.0%} of these the right one."
    )
    if file:
        file.write_text(gate.model_dump_json(indent=2) + "\n", encoding="utf-8")
        click.echo(f"{file}: written; name it as the `gate` of the index")


def _search(
    server: "Endpoint", index: str, readers: Sequence[str], queries: Sequence[Query], rerank: bool | None
) -> "list[answer_pb2.SearchResponse]":
    from tuneserve.v1 import answer_pb2 as pb
    from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub

    with connected(server) as channel, ThreadPoolExecutor(_TOGETHER) as threads:
        search = AnswerServiceStub(channel).Search

        def one(query: Query) -> pb.SearchResponse:
            request = pb.SearchRequest(index=index, query=query.text, readers=readers, limit=_PASSAGES, rerank=rerank)
            found: pb.SearchResponse = search(request, **server.options)
            return found

        return list(threads.map(one, queries))


def _queries(file: Path) -> Iterator[Query]:
    from tuneserve import formats

    for where, row in formats.read(str(file.resolve())):
        try:
            yield _query(row)
        except ValueError as error:
            raise UserError(f"{where}: {error}", "columns: query, documents") from None


def _query(row: dict[str, Any] | str) -> Query:
    if isinstance(row, str):
        raise ValueError(row)
    text, documents = row.get("query"), row.get("documents")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("query is missing or blank")
    if isinstance(documents, str):
        documents = [one.strip() for one in documents.split(";") if one.strip()]
    if not isinstance(documents, list) or not all(isinstance(one, str) for one in documents):
        raise ValueError("documents is not a list of ids")
    return Query(text, frozenset(documents))
