"""Our server beside that of another checkout, in turns: what a change costs.

    git worktree add ../before COMMIT && make -C ../before setup
    python -m tuneserve.benchmarks.serving.before demo/sentiment demo/chat --before ../before

Regime. As cost.py's: the same jobs and engine settings for both, both up at the same time and one under load, rounds in
turns. Of two servers the one started second may be slower, so each order has half of the rounds. With
`--small`, models that cost the engine next to nothing take the place of CLASSIFIER and CHAT (front_end.py).

Prints tables; the last line of stdout is one JSON object. Exits with status 0 only if nothing is shown to cost more
than two in a hundred.
"""

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from tuneserve.benchmarks.claims import Claim
from tuneserve.benchmarks.serving import cost_report, front_end, interleave, small_model, systems
from tuneserve.benchmarks.serving.cost_report import Report, compared
from tuneserve.benchmarks.serving.interleave import Sample, Scenario
from tuneserve.benchmarks.serving.systems import Engine, System
from tuneserve.benchmarks.serving.workers import worker
from tuneserve.errors import UserError
from tuneserve.machine.runtime import preload

_KINDS = {True: ("single texts", "batches"), False: ("streamed",)}
_LEAST = 0.98
_CONTEXT = 512


def claims(pooling: bool) -> tuple[list[Claim], list[Claim]]:
    """What is compared: rates, and CPU times."""
    pairs = {kind: (f"after, {kind}", f"before, {kind}") for kind in _KINDS[pooling]}
    rates = [Claim(f"{kind}, to before", *pair, at_least=_LEAST) for kind, pair in pairs.items()]
    return rates, [Claim(f"CPU, {kind}, to before", *pair) for kind, pair in pairs.items()]


def scenarios(name: str, system: System, pooling: bool, vocabulary: int, small: bool) -> list[Scenario]:
    """Jobs of some seconds each."""
    if pooling:
        return front_end.classification(name, system, 2048 if small else 512)
    return [front_end.streams(name, system, vocabulary, 256 if small else 64)]


def measure(
    model: Path, python: Path, rounds: int, client: worker.Worker, scratch: Path, pooling: bool, small: bool
) -> dict[str, list[Sample]]:
    """Rounds with each order of starting, by scenario."""
    vocabulary = small_model.vocabulary(model)
    engine = Engine(max_model_len=_CONTEXT if small and not pooling else None, kv_cache_memory_bytes=1 << 28)
    pythons = {"before": python, "after": None}
    found: dict[str, list[Sample]] = {}
    for names in (list(pythons), list(reversed(pythons))):
        click.echo(f"starting {names[0]}, then {names[1]}, for {'texts' if pooling else 'streams'}", err=True)
        with ExitStack() as running:
            compared_: list[Scenario] = []
            for name in names:
                serve = systems.ours({"model": model}, client, scratch, engine, python=pythons[name])
                compared_ += scenarios(name, running.enter_context(serve), pooling, vocabulary, small)
            samples = interleave.measure(compared_, (rounds + 1) // 2, partial(click.echo, err=True))
        for scenario, more in samples.items():
            found.setdefault(scenario, []).extend(more)
    return found


def python_of(checkout: Path) -> Path:
    """Returns the interpreter of a checkout. Raises UserError."""
    python = checkout.resolve() / ".venv" / "bin" / "python"
    if not python.exists():
        raise UserError(f"--before: {checkout} has no .venv: run make setup there")
    return python


@click.command()
@compared
@click.option("--before", "checkout", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--small", is_flag=True, help="With models whose engine costs next to nothing.")
@click.option("--report", is_flag=True, help="Also write benchmarks/results/DATE-before-cpu.md (or -gpu).")
def main(classifier: Path, chat: Path, rounds: int, checkout: Path, small: bool, report: bool) -> None:
    """Compare this checkout's server with that of another one."""
    python = python_of(checkout)
    preload()
    result = Report(rounds, "python -m tuneserve.benchmarks.serving.before", "before", "before-")
    with tempfile.TemporaryDirectory(prefix="tuneserve-bench-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        client, _ = worker.clients(stack, scratch)
        for pooling, path in ((True, classifier), (False, chat)):
            model = path
            if small:
                model = scratch / path.name
                small_model.write(path, model, pooling=pooling)
            samples = measure(model, python, rounds, client, scratch, pooling, small)
            result.add("classification" if pooling else "generation", samples, *claims(pooling))
    cost_report.conclude(result, report)


if __name__ == "__main__":
    main()
