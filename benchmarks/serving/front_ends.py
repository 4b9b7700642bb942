"""How busy the busiest front end is: our server with one process, and with several.

    python -m tuneserve.benchmarks.serving.front_ends demo/sentiment

With a small model on a GPU, the rate is what one core can accept, tokenize and answer; with several processes it is
bounded by the busiest of their cores. Linux spreads connections, not calls, so that is not exactly its share.

Regime. As front_end.py's: a model like CLASSIFIER with one layer of 32 dimensions, so that a CPU's engine is as quick;
both servers up at the same time and one under load, rounds in turns, the first one warms up. 8,192 texts one by one on
512 connections, so that several front ends have as many calls at hand as they take at a time. CPU is that of the
busiest front end, without engines, for each text of the job. A text costs more where client, front ends and engines
share few cores, and rates mean little there.

Prints a table; the last line of stdout is one JSON object. Ends with status 0 only if the promise was kept.
"""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import click
import psutil

from tuneserve.benchmarks.claims import MIN_ROUNDS, Claim, ratios
from tuneserve.benchmarks.serving import cost_report, small_model, systems
from tuneserve.benchmarks.serving.cost_report import Report
from tuneserve.benchmarks.serving.systems import Engine, System
from tuneserve.benchmarks.serving.workers import job, worker
from tuneserve.benchmarks.serving.workers.job import Job
from tuneserve.machine.runtime import preload

_TEXTS = 8192
_CONNECTIONS = 512
# No call is refused, though a process has only its part of the queue.
_MAX_QUEUE = 1 << 14
# Of the busiest of N processes, to the only one: at most this much more than 1 / N.
_UNEVEN = 1.1


def front_ends(server: int) -> list[psutil.Process]:
    """Returns a server's front ends: its processes, if there are several."""
    parent = psutil.Process(server)
    return [one for one in parent.children() if "--shared" in one.cmdline()] or [parent]


def one_round(system: System, seed: int) -> tuple[float, float]:
    """Does a job. Returns texts a second, and the milliseconds of the busiest front end for each text."""
    watched = front_ends(system.session)
    before = [_seconds(one) for one in watched]
    outcome = system.do(Job(texts=job.texts(_TEXTS, seed), connections=_CONNECTIONS))
    used = [_seconds(one) - started for one, started in zip(watched, before, strict=True)]
    return outcome.rate, 1000 * max(used) / outcome.texts


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(found: Mapping[str, System], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Returns rates and CPU times of all rounds, by system."""
    rates: dict[str, list[float]] = {name: [] for name in found}
    busiest: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        names = list(found)[:: 1 if number % 2 else -1]
        for place, name in enumerate(names):
            rate, milliseconds = one_round(found[name], 2 * number + place)
            if number:
                rates[name].append(rate)
                busiest[name].append(milliseconds)
                click.echo(f"round {number}: {name}: {rate:.0f}/s, {milliseconds:.3f} ms", err=True)
    return rates, busiest


@click.command()
@click.argument("classifier", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--processes", type=click.IntRange(2), default=2, show_default=True, help="Of the second server.")
@click.option("--rounds", type=click.IntRange(1), default=MIN_ROUNDS, show_default=True, help="Of each server.")
@click.option("--report", is_flag=True, help="Also write benchmarks/results/DATE-front-ends-cpu.md (or -gpu).")
def main(classifier: Path, processes: int, rounds: int, report: bool) -> None:
    """Measure the CPU time of the busiest front end, with a small model that is like CLASSIFIER."""
    preload()
    one, several = "one process", f"{processes} processes"
    result = Report(rounds, "python -m tuneserve.benchmarks.serving.front_ends", "front_ends", "front-ends-")
    with tempfile.TemporaryDirectory(prefix="tuneserve-bench-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        client, _ = worker.clients(stack, scratch)
        model, engine = scratch / "model", Engine(kv_cache_memory_bytes=1 << 28)
        small_model.write(classifier, model, pooling=True)
        found = {
            name: stack.enter_context(
                systems.ours({"model": model}, client, scratch, engine, processes=count, max_queue=_MAX_QUEUE)
            )
            for name, count in ((one, 1), (several, processes))
        }
        rates, busiest = measure(found, rounds)
    result.ratios += ratios(
        [Claim("CPU of a text, of the busiest front end", several, one, at_most=round(_UNEVEN / processes, 3))], busiest
    )
    result.ratios += ratios([Claim("texts a second", several, one)], rates)
    cost_report.conclude(result, report)


if __name__ == "__main__":
    main()
