"""Whether more connections make the server slower: single texts in closed loops, on 1 to 512 connections.

    python -m tuneserve.benchmarks.serving.connections demo/sentiment

Each connection waits for its answer before it sends the next text. So a few connections can't keep the engine busy, and
the rate grows with their number up to a peak; from there on it should stay. The promise is about what follows:
128, 256 and 512 connections, each relative to 64.

Regime. As cost.py's: fixed jobs on one running server, rounds in turns, the first one warms up. 1,024 texts for each
number of connections. Client and server share the machine, and the client's part of it grows with the connections.

Prints tables; the last line of stdout is one JSON object. Ends with status 0 only where every promise was kept.
"""

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from tuneserve.benchmarks.claims import MIN_ROUNDS, Claim
from tuneserve.benchmarks.serving import cost_report, interleave, systems
from tuneserve.benchmarks.serving.cost_report import Report
from tuneserve.benchmarks.serving.interleave import Scenario
from tuneserve.benchmarks.serving.systems import Engine
from tuneserve.benchmarks.serving.workers import job, worker
from tuneserve.benchmarks.serving.workers.job import Job
from tuneserve.machine.runtime import preload

_TEXTS = 1024
_PEAK = 64
_FEWER, _MORE = (1, 4, 16), (128, 256, 512)
_CLAIMS = [
    Claim(f"{count} connections, to {_PEAK}", str(count), str(_PEAK), at_least=0.95 if count > _PEAK else None)
    for count in (*_FEWER, *_MORE)
]


def texts(connections: int, seed: int) -> Job:
    """1,024 texts, one by one."""
    return Job(texts=job.texts(_TEXTS, seed), connections=connections)


@click.command()
@click.argument("classifier", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--rounds", type=click.IntRange(1), default=MIN_ROUNDS, show_default=True, help="Of each number.")
@click.option("--report", is_flag=True, help="Also write benchmarks/results/DATE-connections-cpu.md (or -gpu).")
def main(classifier: Path, rounds: int, report: bool) -> None:
    """Measure the rate of single texts of CLASSIFIER on 1 to 512 connections."""
    preload()
    result = Report(rounds, "python -m tuneserve.benchmarks.serving.connections", "connections", "connections-")
    with tempfile.TemporaryDirectory(prefix="tuneserve-bench-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        client, _ = worker.clients(stack, scratch)
        engine = Engine(kv_cache_memory_bytes=1 << 28)
        system = stack.enter_context(systems.ours({"model": classifier}, client, scratch, engine))
        scenarios = [Scenario(str(count), system, partial(texts, count)) for count in (*_FEWER, _PEAK, *_MORE)]
        samples = interleave.measure(scenarios, rounds, partial(click.echo, err=True))
    result.add("classification by connections", samples, _CLAIMS)
    cost_report.conclude(result, report)


if __name__ == "__main__":
    main()
