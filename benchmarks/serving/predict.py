"""`tuneserve predict` beside plain vLLM, which gets all texts in one call: how much a file costs.

    python -m tuneserve.benchmarks.serving.predict demo/sentiment

Regime. As cost.py's: fixed jobs, both systems up at the same time and one under load, rounds in turns, the first one
warms up. 2,048 texts: from a file of rows to a file of rows with answers, or to the outputs of `LLM.encode`. The start
of the server, or of `LLM`, does not count.

Prints tables; the last line of stdout is one JSON object. Ends with status 0 only where the promise was kept.
"""

import os
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

_RATE = Claim("predict, to LLM.encode", "predict", "LLM.encode", at_least=0.97)


def texts(seed: int) -> Job:
    """The texts of a round."""
    return Job(texts=job.texts(2048, seed))


@click.command()
@click.argument("classifier", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--rounds", type=click.IntRange(1), default=MIN_ROUNDS, show_default=True, help="Rounds.")
@click.option("--report", is_flag=True, help="Also write benchmarks/results/DATE-predict-cpu.md (or -gpu).")
def main(classifier: Path, rounds: int, report: bool) -> None:
    """Measure `tuneserve predict` with the checkpoint CLASSIFIER, beside vLLM without a server."""
    preload()
    result = Report(rounds, "python -m tuneserve.benchmarks.serving.predict", "predict", "predict-")
    with tempfile.TemporaryDirectory(prefix="tuneserve-bench-") as folder, ExitStack() as stack:
        scratch, engine = Path(folder), Engine()
        start = worker.started("predict_client", [str(classifier)], scratch / "predict_client.log", os.environ)
        client = stack.enter_context(start)
        click.echo("starting two systems", err=True)
        ours = stack.enter_context(systems.ours({"model": classifier}, client, scratch, engine))
        plain = stack.enter_context(systems.in_process(classifier, scratch, engine, pooling=True))
        scenarios = [Scenario("predict", ours, texts), Scenario("LLM.encode", plain, texts)]
        result.add("classification", interleave.measure(scenarios, rounds, partial(click.echo, err=True)), [_RATE])
    cost_report.conclude(result, report)


if __name__ == "__main__":
    main()
