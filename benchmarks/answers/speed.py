"""Speed of an index: how soon a document is found, and what a search costs beside the store alone.

    python -m tuneserve.benchmarks.answers.speed [--passages 10000] [--rounds 15] [--report FILE]

Regime. Documents are sentences about films, one passage each; MiniLM (22M) makes the vectors. A document is written
and searched for at once by a word that no other has: the time is from the call that writes it to the end of the first
search that finds it. Then 8 callers search, by Search, and in turns by the store alone: LanceDB in this process, on
the same files, with the two queries of each search, whose vectors are ready. What that leaves out is the server, the
embedding model, the scores and the wire. Every other round begins with the other side, and each begins when the engine
is idle. Ratio and promise as in claims.py; the last line of stdout is the result as JSON.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import click
import lancedb
import numpy as np
from lancedb.query import MatchQuery
from numpy.typing import NDArray
from rich.table import Table

from tuneserve import samples
from tuneserve.benchmarks.answers import served
from tuneserve.benchmarks.claims import METHOD, MIN_ROUNDS, Claim, Ratio, ratios
from tuneserve.checkpoint import rows
from tuneserve.client import AsyncClient, Client, Document
from tuneserve.errors import StepFailed

CALLERS = 8
CLAIM = Claim("Search, to the store alone", "Search", "store", at_least=0.8)
MOST_SECONDS = 1.0
# What the server asks for: as many passages by each query, of documents that everybody may read.
_CANDIDATES, _READABLE = 50, "array_has_any(readers, [''])"
# An engine polls for a second after its last call, at the cost of a core.
_IDLE_SECONDS = 1.5

Search = Callable[[int], Awaitable[set[str]]]


def soon(client: Client, count: int) -> list[float]:
    """Writes documents, and returns how many seconds each took until it was found."""
    seconds = []
    for number in range(count):
        id_, word, started = f"new-{number}", f"zyx{number}qv", time.perf_counter()
        client.upsert_documents("docs", [Document(id_, f"A film about {word}.")])
        while id_ not in {one.document_id for one in client.search("docs", word)}:
            pass
        seconds.append(time.perf_counter() - started)
    return seconds


async def rate(search: Search, queries: int) -> float:
    """Returns the searches a second of all callers."""
    left, started = iter(range(queries)), time.perf_counter()

    async def caller() -> None:
        for place in left:
            await search(place)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return queries / (time.perf_counter() - started)


async def measured(sides: dict[str, Search], queries: int, rounds: int) -> dict[str, list[float]]:
    """Returns the rates of each side. Raises StepFailed if one finds what the other does not."""
    for place in range(min(queries, 20)):
        found = {name: await search(place) for name, search in sides.items()}
        if not found["Search"] <= found["store"]:
            raise StepFailed(f"query {place}: Search found {found['Search'] - found['store']}, which the store did not")
    rates: dict[str, list[float]] = {name: [] for name in sides}
    # The first round warms up.
    for number in range(rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            await asyncio.sleep(_IDLE_SECONDS)
            found_rate = await rate(sides[name], queries)
            if number:
                rates[name].append(found_rate)
                click.echo(f"round {number}: {name} {found_rate:.1f}/s", err=True)
    return rates


async def beside_the_store(
    address: str, directory: Path, queries: Sequence[str], vectors: NDArray[np.float32], rounds: int
) -> dict[str, list[float]]:
    """Measures both sides."""
    table = await (await lancedb.connect_async(directory)).open_table("anonymous")
    async with AsyncClient(address) as client:

        async def by_server(place: int) -> set[str]:
            return {one.document_id for one in await client.search("docs", queries[place])}

        async def by_store(place: int) -> set[str]:
            both = (
                table.query().nearest_to(vectors[place]).column("vector").distance_type("cosine"),
                table.query().nearest_to_text(MatchQuery(queries[place], "passage")),
            )
            found = await asyncio.gather(*(one.where(_READABLE).limit(_CANDIDATES).to_arrow() for one in both))
            return {id_ for some in found for id_ in some["document"].to_pylist()}

        rates = await measured({"Search": by_server, "store": by_store}, len(queries), rounds)
    return rates


def table(seconds: Sequence[float], rates: dict[str, list[float]], ratio: Ratio, passages: int) -> Table:
    """Returns what was measured, for people."""
    middle, late = np.percentile(seconds, [50, 99])
    drawn = Table("measure", "found", "promise", "", title=f"An index of {passages:,} passages, {CALLERS} callers")
    kept = "kept" if late <= MOST_SECONDS else "not kept"
    drawn.add_row("written until found, median", f"{middle * 1000:.0f} ms", "", "")
    drawn.add_row("written until found, p99", f"{late * 1000:.0f} ms", f"≤ {MOST_SECONDS:g} s", kept)
    for name, some in rates.items():
        drawn.add_row(f"{name}, median of rounds", f"{np.median(some):.1f}/s", "", "")
    drawn.add_row(ratio.claim.name, ratio.interval.text(2), ratio.promise, ratio.verdict or "")
    return drawn


@click.command()
@click.option("--passages", type=click.IntRange(100, 10_000), default=10_000, show_default=True)
@click.option("--queries", type=click.IntRange(16), default=200, show_default=True, help="Of each round and side.")
@click.option("--rounds", type=click.IntRange(1), default=MIN_ROUNDS, show_default=True)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Also write the table here.")
def main(passages: int, queries: int, rounds: int, report: Path | None) -> None:
    """Measure how soon a document is found, and Search beside the store alone."""
    sentences = list(dict.fromkeys(str(row["text"]) for row in rows.read(samples.sentiment())))
    asked = list(dict.fromkeys(str(row["text"]) for row in rows.read(samples.topics()) if row["label"] == "products"))
    documents = [Document(f"film-{number}", text) for number, text in enumerate(sentences[:passages])]
    models = {"encoder": samples.embedding_model()}
    with served.answering(models, {"docs": {"embedding": "encoder"}}) as (address, folder):
        with Client(address) as client:
            served.write(client, "docs", documents)
            seconds = soon(client, 200)
            vectors = np.array([one.values for one in client.embed("encoder", asked[:queries])], np.float32)
        rates = asyncio.run(beside_the_store(address, folder / "docs", asked[:queries], vectors, rounds))
    [ratio] = ratios([CLAIM], rates)
    result: dict[str, Any] = {"method": METHOD, "passages": len(documents), "rounds": rounds}
    result["found_ms"] = [round(float(ms), 1) for ms in np.percentile(seconds, [50, 99]) * 1000]
    served.conclude(table(seconds, rates, ratio, len(documents)), result | {"ratio": ratio.to_json()}, report)


if __name__ == "__main__":
    main()
