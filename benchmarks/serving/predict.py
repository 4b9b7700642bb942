"""`tuneserve predict` beside plain vLLM, which gets all rows in one call: how much a file costs.

    python -m tuneserve.benchmarks.serving.predict demo/sentiment demo/chat

Regime. As cost.py's: fixed jobs, both systems up at the same time and one under load, rounds in turns, the first one
warms up. 2,048 texts to classify, and 128 prompts of about 100 tokens to continue by 64: from a file of rows to a file
of rows with answers, or to the outputs of `LLM.encode` and `LLM.generate`. The start of the server, or of `LLM`, does
not count. No two prompts begin alike, so that no prefix cache answers.

Prints tables; the last line of stdout is one JSON object. Ends with status 0 only where the promise was kept.
"""

import os
import random
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from tuneserve.benchmarks.claims import Claim
from tuneserve.benchmarks.serving import cost_report, interleave, systems
from tuneserve.benchmarks.serving.cost_report import Report, compared
from tuneserve.benchmarks.serving.interleave import Scenario
from tuneserve.benchmarks.serving.systems import Engine
from tuneserve.benchmarks.serving.workers import job, worker
from tuneserve.benchmarks.serving.workers.job import Job
from tuneserve.machine.runtime import preload

_RATES = [
    Claim("predict, to LLM.encode", "predict", "LLM.encode", at_least=0.97),
    Claim("predict, to LLM.generate", "predict", "LLM.generate", at_least=0.97),
]
_PROMPTS, _SENTENCES, _CONTEXT = 128, 4, 512


def texts(seed: int) -> Job:
    """The texts of a round."""
    return Job(texts=job.texts(2048, seed))


def prompts(seed: int) -> Job:
    """The prompts of a round: sentences after a number of as many digits."""
    numbers, sentences = random.Random(seed), job.texts(_PROMPTS * _SENTENCES, seed)
    rows = [
        " ".join([f"{numbers.randrange(10**12):012}", *sentences[start : start + _SENTENCES]])
        for start in range(0, len(sentences), _SENTENCES)
    ]
    return Job(texts=rows, max_tokens=64)


@click.command()
@compared
@click.option("--report", is_flag=True, help="Also write benchmarks/results/DATE-predict-cpu.md (or -gpu).")
def main(classifier: Path, chat: Path, rounds: int, report: bool) -> None:
    """Measure `tuneserve predict` with the checkpoints CLASSIFIER and CHAT, beside vLLM without a server."""
    preload()
    result = Report(rounds, "python -m tuneserve.benchmarks.serving.predict", "predict", "predict-")
    with tempfile.TemporaryDirectory(prefix="tuneserve-bench-") as folder:
        scratch = Path(folder)
        for name, path, limit, rows, engine in (
            ("classification", classifier, "LLM.encode", texts, Engine()),
            ("generation", chat, "LLM.generate", prompts, Engine(max_model_len=_CONTEXT)),
        ):
            with ExitStack() as stack:
                start = worker.started("predict_client", [str(path)], scratch / "predict_client.log", os.environ)
                client = stack.enter_context(start)
                click.echo(f"starting two systems for {name}", err=True)
                ours = stack.enter_context(systems.ours({"model": path}, client, scratch, engine))
                plain = stack.enter_context(systems.in_process(path, scratch, engine, pooling=rows is texts))
                scenarios = [Scenario("predict", ours, rows), Scenario(limit, plain, rows)]
                result.add(name, interleave.measure(scenarios, rounds, partial(click.echo, err=True)), _RATES)
    cost_report.conclude(result, report)


if __name__ == "__main__":
    main()
