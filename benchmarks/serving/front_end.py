"""What a text and a token cost outside the engine, beside `vllm serve` with one API server and with two.

    python -m tuneserve.benchmarks.serving.front_end demo/sentiment demo/chat

On a GPU a small model takes microseconds a text, and the front end decides how many there are a second. Here the
models are made so small that a CPU's engine is as quick: those of CLASSIFIER and CHAT, with their tokenizers, with one
layer of 32 dimensions and random weights, through vLLM. Their answers mean nothing.

Regime. As cost.py's: fixed jobs, all systems up at the same time and one under load, rounds in turns, the first one
warms up. 2,048 texts one by one on 64 connections, and in batches of 64 on 4; 32 prompts of 128 random tokens with 256
tokens to make, streamed. CPU is that of all processes of a system, engine and API servers too, without the client.

Prints tables; the last line of stdout is one JSON object. Ends with status 0 only where every promise was kept.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from tuneserve.benchmarks.claims import Claim
from tuneserve.benchmarks.serving import cost_report, interleave, small_model, systems
from tuneserve.benchmarks.serving.cost_report import Report, compared
from tuneserve.benchmarks.serving.interleave import Sample, Scenario
from tuneserve.benchmarks.serving.systems import Engine, System
from tuneserve.benchmarks.serving.workers import job, worker
from tuneserve.benchmarks.serving.workers.job import Job
from tuneserve.machine.runtime import preload

_CONTEXT = 512
_RATES = [
    Claim("single texts, to vllm serve", "ours, single texts", "vllm serve, single texts"),
    Claim("single texts, to two API servers", "ours, single texts", "vllm serve × 2, single texts"),
    Claim("single texts, to the better of them", "ours, single texts", "the better, single texts", at_least=1.35),
    Claim("batches, to vllm serve", "ours, batches", "vllm serve, batches"),
    Claim("streamed, to vllm serve", "ours, streamed", "vllm serve, streamed"),
]
_CPU = [
    Claim("CPU of a single text, to vllm serve", "ours, single texts", "vllm serve, single texts", at_most=0.5),
    Claim("CPU of a text in batches, to vllm serve", "ours, batches", "vllm serve, batches", at_most=0.35),
    Claim("CPU of a streamed token, to vllm serve", "ours, streamed", "vllm serve, streamed"),
]


def classification(name: str, system: System, count: int = 2048) -> list[Scenario]:
    """Texts one by one, and in batches."""

    def texts(seed: int, batch: int = 1) -> Job:
        return Job(texts=job.texts(count, seed), batch=batch, connections=4 if batch > 1 else 64)

    return [
        Scenario(f"{name}, single texts", system, texts),
        Scenario(f"{name}, batches", system, partial(texts, batch=64)),
    ]


def streams(name: str, system: System, vocabulary: int, tokens: int = 256) -> Scenario:
    """32 streams at once."""
    prompts = partial(job.prompts, 32, 128, vocabulary)
    return Scenario(
        f"{name}, streamed",
        system,
        lambda seed: Job(prompts=prompts(seed), max_tokens=tokens, connections=32, stream=True),
    )


def better(first: Sequence[Sample], second: Sequence[Sample]) -> list[Sample]:
    """Of two systems, by round, the one that was faster."""
    return [max(pair, key=lambda one: one.rate) for pair in zip(first, second, strict=True)]


@click.command()
@compared
@click.option("--report", is_flag=True, help="Also write benchmarks/results/DATE-front-end-cpu.md (or -gpu).")
def main(classifier: Path, chat: Path, rounds: int, report: bool) -> None:
    """Measure what calls cost our server and `vllm serve`, with small models that are like CLASSIFIER and CHAT."""
    preload()
    result = Report(rounds, "python -m tuneserve.benchmarks.serving.front_end", "front_end", "front-end-")
    with tempfile.TemporaryDirectory(prefix="tuneserve-bench-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        grpc, http = worker.clients(stack, scratch)
        for pooling, path in ((True, classifier), (False, chat)):
            model = scratch / path.name
            vocabulary = small_model.write(path, model, pooling=pooling)
            engine = Engine(max_model_len=None if pooling else _CONTEXT, kv_cache_memory_bytes=1 << 28)
            serve = partial(systems.vllm_serve, model, http, scratch, engine, pooling=pooling, like_ours=False)
            with ExitStack() as running:
                click.echo(f"starting three systems for {'texts' if pooling else 'streams'}", err=True)
                found = {
                    "ours": running.enter_context(systems.ours({"model": model}, grpc, scratch, engine)),
                    "vllm serve": running.enter_context(serve()),
                    "vllm serve × 2": running.enter_context(serve(api_servers=2)),
                }
                scenarios: list[Scenario] = []
                for name, system in found.items():
                    scenarios += classification(name, system) if pooling else [streams(name, system, vocabulary)]
                samples = interleave.measure(scenarios, rounds, partial(click.echo, err=True))
            if pooling:
                one, two = (samples[f"{name}, single texts"] for name in ("vllm serve", "vllm serve × 2"))
                samples["the better, single texts"] = better(one, two)
            result.add("classification" if pooling else "generation", samples, _RATES, _CPU)
    cost_report.conclude(result, report)


if __name__ == "__main__":
    main()
