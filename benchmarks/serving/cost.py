"""`make bench`: the cost of our server, compared with vLLM without a server and with `vllm serve`, as ratios.

    python -m tuneserve.benchmarks.serving.cost demo/sentiment demo/chat

Regime. Jobs are fixed amounts of work, the same for all systems: 32 prompts of 128 random tokens with 64 tokens to
generate; texts to classify in batches of 64 on 4 connections, or one by one on 64, or as 4 streams of single texts. All
systems of a comparison run at
the same time, and one of them is under load. Each round runs every scenario once, and a ratio compares two scenarios of
one round, with the interval and the promises of claims.py. The first round is a warm-up. Client and server share the
machine; each client is a process of its own. Texts to classify are repeated, because an encoder's engine caches no
answers; prompts are never repeated.

Three comparisons: the same engine settings and process layout for all; the same settings, and `vllm serve` with its own
process layout; everything at its default. Time to the first answer counts from the process's start, with nothing else
running; then our engine is killed, and the time to the next answer counts from that. The overload is an open loop, see
overload.py.

Prints tables; the last line of stdout is one JSON object. Exits with status 0 only if every promise was kept.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from tuneserve.benchmarks import processes
from tuneserve.benchmarks.claims import MIN_ROUNDS, Claim, ratios
from tuneserve.benchmarks.serving import cost_report, interleave, small_model, systems
from tuneserve.benchmarks.serving.cost_report import Report, compared
from tuneserve.benchmarks.serving.interleave import Scenario
from tuneserve.benchmarks.serving.overload import overload
from tuneserve.benchmarks.serving.systems import Engine, System
from tuneserve.benchmarks.serving.workers import job, worker
from tuneserve.benchmarks.serving.workers.job import Job
from tuneserve.errors import StepFailed
from tuneserve.machine.runtime import has_nvidia_gpu, preload
from tuneserve.machine.tiers import this_tier
from tuneserve.serving import START_SECONDS

# Where processors multiply integers of 8 bits faster than `dtype`.
_INT8 = this_tier().int8_fast
GENERATION = [
    Claim("streamed, to LLM.generate", "ours, streamed", "LLM.generate", at_least=0.96),
    Claim("unary, to LLM.generate", "ours, unary", "LLM.generate", at_least=0.96),
    Claim("streamed, to vllm serve laid out alike", "ours, streamed", "vllm serve like ours, streamed"),
    Claim("streamed, to vllm serve", "ours, streamed", "vllm serve, streamed", at_least=1.0),
    Claim("w8a8, to bf16, streamed", "ours w8a8, streamed", "ours, streamed", at_least=1.15 if _INT8 else None),
]
CLASSIFICATION = [
    Claim("batches, to LLM.encode", "ours, batches", "LLM.encode", at_least=0.97),
    Claim("ClassifyStream, to LLM.encode", "ours, ClassifyStream", "LLM.encode", at_least=0.93),
    Claim("batches, to vllm serve laid out alike", "ours, batches", "vllm serve like ours, batches"),
    Claim("single texts, to vllm serve laid out alike", "ours, single texts", "vllm serve like ours, single texts"),
    Claim("single texts, to vllm serve", "ours, single texts", "vllm serve, single texts", at_least=1.35),
    Claim("w8a8, to bf16, batches", "ours w8a8, batches", "ours, batches", at_least=1.3 if _INT8 else None),
]
DEFAULTS = [
    Claim("defaults: streamed, to vllm serve", "ours, streamed", "vllm serve, streamed"),
    Claim("defaults: batches, to vllm serve", "ours, batches", "vllm serve, batches"),
    Claim("defaults: single texts, to vllm serve", "ours, single texts", "vllm serve, single texts"),
]
STARTS = [Claim("start to first answer, to vllm serve", "ours", "vllm serve", at_most=0.5)]
OVERLOADS = [Claim("answers under ten times the load, to the peak", "overload", "peak", at_least=0.95)]
# A caller of an overloaded server is better off with a refusal at once.
OVERLOAD_WAIT_SECONDS = 2.0
QUANTIZED = "w8a8"
# Between two calls to an engine that is not there.
_ASK_SECONDS = 0.05
_PARTS = ("start", "generation", "classification", "defaults", "overload")


@dataclass(frozen=True)
class Bench:
    """The paths and settings of a benchmark run."""

    classifier: Path
    chat: Path
    scratch: Path
    grpc: worker.Worker
    http: worker.Worker
    rounds: int
    starts: int

    def engine(self, pooling: bool) -> Engine:
        """The engine settings that all systems get in comparisons with the same settings."""
        on_cpu = not has_nvidia_gpu()
        return Engine(
            max_model_len=None if pooling else 1024,
            max_num_batched_tokens=2048 if on_cpu else 8192,
            block_size=32 if on_cpu and not pooling else None,
            enforce_eager=on_cpu,
        )

    def path(self, pooling: bool) -> Path:
        """The model."""
        return self.classifier if pooling else self.chat

    def ours(self, pooling: bool, engine: Engine | None, quantized: bool = False, **settings: Any) -> "Start":
        """Our server with the model and, if there is one, its quantized checkpoint."""
        path = self.path(pooling)
        models = {"model": path}
        if quantized and (other := path.with_name(f"{path.name}-{QUANTIZED}")).is_dir():
            models[QUANTIZED] = other
        return partial(systems.ours, models, self.grpc, self.scratch, engine, **settings)

    def vllm_serve(self, pooling: bool, engine: Engine | None, like_ours: bool = False) -> "Start":
        """`vllm serve` with the model."""
        path = self.path(pooling)
        return partial(systems.vllm_serve, path, self.http, self.scratch, engine, pooling=pooling, like_ours=like_ours)

    def generate(self, seed: int, stream: bool = False) -> Job:
        """32 prompts at once."""
        vocabulary = small_model.vocabulary(self.chat)
        prompts = job.prompts(32, 128, vocabulary, seed)
        return Job(prompts=prompts, max_tokens=64, connections=32, stream=stream)

    @staticmethod
    def classify(seed: int, batch: int = 1, stream: bool = False) -> Job:
        """1,024 texts, 64 at a time, one by one, or in streams of `batch` texts."""
        return Job(texts=job.texts(1024, seed), batch=batch, stream=stream, connections=4 if batch > 1 else 64)

    def first(self, pooling: bool) -> Job:
        """The smallest job with an answer."""
        return Job(texts=job.texts(1, 0)) if pooling else Job(prompts=job.prompts(1, 8, 1000, 0), max_tokens=1)


Start = Callable[[], AbstractContextManager[System]]


def same_settings(bench: Bench, report: Report, pooling: bool) -> None:
    """All systems, compared with the same engine settings."""
    engine = bench.engine(pooling)
    with ExitStack() as stack:
        show(f"starting four systems for {'classification' if pooling else 'generation'}")
        limit = stack.enter_context(systems.in_process(bench.path(pooling), bench.scratch, engine, pooling=pooling))
        alike = stack.enter_context(bench.vllm_serve(pooling, engine, like_ours=True)())
        peer = stack.enter_context(bench.vllm_serve(pooling, engine)())
        own = stack.enter_context(bench.ours(pooling, engine, quantized=True)())
        if pooling:
            scenarios = [
                Scenario("LLM.encode", limit, partial(bench.classify, batch=64)),
                *_classification("ours", own, bench),
                Scenario("ours, ClassifyStream", own, partial(bench.classify, batch=256, stream=True)),
                *_classification("vllm serve like ours", alike, bench),
                *_classification("vllm serve", peer, bench),
            ]
        else:
            scenarios = [
                Scenario("LLM.generate", limit, bench.generate),
                Scenario("ours, unary", own, bench.generate),
                Scenario("ours, streamed", own, partial(bench.generate, stream=True)),
                Scenario("vllm serve like ours, streamed", alike, partial(bench.generate, stream=True)),
                Scenario("vllm serve, streamed", peer, partial(bench.generate, stream=True)),
            ]
        if bench.path(pooling).with_name(f"{bench.path(pooling).name}-{QUANTIZED}").is_dir():
            ask = partial(bench.classify, batch=64) if pooling else partial(bench.generate, stream=True)
            name = f"ours {QUANTIZED}, {'batches' if pooling else 'streamed'}"
            scenarios.append(Scenario(name, own, ask, QUANTIZED))
        samples = interleave.measure(scenarios, bench.rounds, show)
    name = "classification" if pooling else "generation"
    report.add(name, samples, CLASSIFICATION if pooling else GENERATION)


def defaults(bench: Bench, report: Report, pooling: bool) -> None:
    """Our server and `vllm serve` with their default settings."""
    name = f"defaults, {'classification' if pooling else 'generation'}"
    show(f"starting two systems for {name}")
    with ExitStack() as stack:
        with _timed(report, f"{name}: vllm serve", bench.first(pooling)) as timed:
            peer = timed(stack.enter_context(bench.vllm_serve(pooling, None)()))
        with _timed(report, f"{name}: ours", bench.first(pooling)) as timed:
            own = timed(stack.enter_context(bench.ours(pooling, None)()))
        if pooling:
            scenarios = [*_classification("ours", own, bench), *_classification("vllm serve", peer, bench)]
        else:
            ask = partial(bench.generate, stream=True)
            scenarios = [Scenario("ours, streamed", own, ask), Scenario("vllm serve, streamed", peer, ask)]
        report.add(name, interleave.measure(scenarios, bench.rounds, show), DEFAULTS)


def _classification(name: str, system: System, bench: Bench) -> list[Scenario]:
    return [
        Scenario(f"{name}, batches", system, partial(bench.classify, batch=64)),
        Scenario(f"{name}, single texts", system, bench.classify),
    ]


def starts(bench: Bench, report: Report) -> None:
    """Start times, one system after the other, in turns: the generation model, with the same engine settings.

    Also of our engine, which our server starts again: `vllm serve` ends with its own.
    """
    engine, first = bench.engine(pooling=False), bench.first(pooling=False)
    systems_ = {"ours": bench.ours(False, engine), "vllm serve": bench.vllm_serve(False, engine)}
    for number in range(bench.starts):
        for name in list(systems_) if number % 2 == 0 else reversed(systems_):
            show(f"start {number + 1} of {bench.starts}: {name}")
            with _timed(report, name, first) as timed, systems_[name]() as system:
                timed(system)
                if name == "ours":
                    report.starts.setdefault("ours, its engine killed", []).append(restarted(system, first))
    report.ratios += ratios(STARTS, report.starts)


def restarted(system: System, first: Job) -> float:
    """Kills a server's engine, and returns the seconds until the next answer. Raises StepFailed if none comes."""
    engines = processes.named(system.session, "EngineCore")
    if not engines:
        raise StepFailed("our server has no engine that could be killed")
    begin = time.perf_counter()
    for engine in engines:
        engine.kill()
    while True:
        try:
            system.do(first)
        except StepFailed:
            if time.perf_counter() - begin > START_SECONDS:
                raise
            time.sleep(_ASK_SECONDS)
        else:
            return time.perf_counter() - begin


@contextmanager
def _timed(report: Report, name: str, first: Job) -> Iterator[Callable[[System], System]]:
    """Measures the time from here to the first answer."""
    begin = time.perf_counter()

    def answered(system: System) -> System:
        system.do(first)
        report.starts.setdefault(name, []).append(time.perf_counter() - begin)
        return system

    yield answered


def overloaded(bench: Bench, report: Report) -> None:
    """Our server alone."""
    show("overload: ten times what the server can answer")
    start = bench.ours(True, bench.engine(pooling=True), max_wait_seconds=OVERLOAD_WAIT_SECONDS)
    with start() as system:
        found = asyncio.run(overload(system.target, system.model, system.session, rounds=bench.rounds, show=show))
    report.overload = found
    report.ratios += ratios(
        OVERLOADS,
        {"peak": [one.peak for one in found.rounds], "overload": [one.result.answered_per_s for one in found.rounds]},
    )


def show(line: str) -> None:
    """Progress, for people."""
    click.echo(line, err=True)


@click.command()
@compared
@click.option(
    "--starts", "start_count", type=click.IntRange(0), default=MIN_ROUNDS, show_default=True, help="Starts to measure."
)
@click.option("--only", type=click.Choice(_PARTS), multiple=True, help="Measure this part; may be repeated.")
@click.option("--report", is_flag=True, help="Also write benchmarks/results/DATE-cpu.md (or -gpu).")
def main(classifier: Path, chat: Path, rounds: int, start_count: int, only: Sequence[str], report: bool) -> None:
    """Measure CLASSIFIER and CHAT, two checkpoints, on our server and its peers. Takes over an hour.

    A promise is kept if the whole 95 % interval of its ratio is on the right side, from 15 rounds on. Exits with status
    0 only if every promise is kept; with 1 if one is not kept, or not shown.
    """
    preload()
    result = Report(rounds)
    with tempfile.TemporaryDirectory(prefix="tuneserve-bench-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        grpc, http = worker.clients(stack, scratch)
        bench = Bench(classifier, chat, scratch, grpc, http, rounds, start_count)
        steps = [
            ("start", "start to first answer", partial(starts, bench, result)),
            ("generation", "generation", partial(same_settings, bench, result, False)),
            ("defaults", "defaults, generation", partial(defaults, bench, result, False)),
            ("classification", "classification", partial(same_settings, bench, result, True)),
            ("defaults", "defaults, classification", partial(defaults, bench, result, True)),
            ("overload", "overload", partial(overloaded, bench, result)),
        ]
        for part, name, step in steps:
            if only and part not in only:
                continue
            try:
                step()
            except StepFailed as error:
                # Measuring takes long: one failed step does not discard the results so far.
                show(f"{name}: {error}\n{error.hint}")
                result.missing.append(f"{name}: {error}")
    cost_report.conclude(result, report)


if __name__ == "__main__":
    main()
