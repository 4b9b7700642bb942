"""Runs one phase of `__main__.py`, as a process of its own, which may be killed at any time:

    python -m tuneserve.benchmarks.gpu.phase OUT NAME UNTIL [--tiny]

Ends at the time UNTIL of the monotonic clock. Writes OUT/NAME.json after each round, and everything else below TMPDIR.
"""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
from tokenizers import Tokenizer

from tuneserve.benchmarks import processes
from tuneserve.benchmarks.claims import MIN_ROUNDS
from tuneserve.benchmarks.gpu import checkpoints, phases, results
from tuneserve.benchmarks.gpu.loads import Load, loads
from tuneserve.benchmarks.gpu.phases import Phase, Variant
from tuneserve.benchmarks.gpu.results import Result
from tuneserve.benchmarks.gpu.shapes import Shape
from tuneserve.benchmarks.gpu.together import Start, Started, together
from tuneserve.benchmarks.serving import systems
from tuneserve.benchmarks.serving.interleave import Scenario, endless
from tuneserve.benchmarks.serving.load.texts import SENTENCES
from tuneserve.benchmarks.serving.systems import System
from tuneserve.benchmarks.serving.workers import worker
from tuneserve.errors import StepFailed
from tuneserve.machine import lifetime
from tuneserve.machine.runtime import preload

# Systems that are not up by then are left out.
_STARTING_SHARE = 0.8
# For the last round, which may take longer than the one before, and for the end of the systems.
_END_SECONDS = 5.0
_TINY_ROUNDS = 2
# Processes of the client of several processes.
_CLIENTS = 4


class Measuring:
    """A phase of a model, and what it has measured so far."""

    def __init__(self, phase: Phase, shape: Shape, rounds: int, out: Path) -> None:
        self._shape = shape
        self._rounds = rounds
        self._path = out / f"{phase.name}.json"
        self._roofs = results.roofs(out)
        self._variants = {variant.label: variant for variant in phase.variants}
        self._begun = time.monotonic()
        self.result = Result(shape.name)

    def keep(self) -> None:
        """Writes the file."""
        self.result.seconds = round(time.monotonic() - self._begun, 1)
        self.result.write(self._path)

    def starts(self, started: Mapping[str, Started]) -> dict[str, System]:
        """Returns the systems that are up."""
        self.result.starts = {name: round(one.seconds, 1) for name, one in started.items() if one.system}
        self.result.missing += [f"{name}: {one.why}" for name, one in started.items() if not one.system]
        self.keep()
        return {name: one.system for name, one in started.items() if one.system}

    def load(self, load: Load, up: Mapping[str, System], tokens: float, until: float) -> None:
        """Measures a load in rounds of all systems, at least one, as long as another one seems to fit."""
        scenarios = self._scenarios(load, up)
        if not scenarios:
            return
        names = [scenario.name for scenario in scenarios]
        self.result.roofs[load.name] = {name: self._roof(load, self._variants[name], tokens) for name in names}
        samples = self.result.samples[load.name] = {name: [] for name in names}
        last = time.monotonic()
        try:
            for number, found in enumerate(endless(scenarios, rest=False)):
                now = time.monotonic()
                if number:
                    for name, sample in found.items():
                        samples[name].append(sample)
                    self.keep()
                    if number == self._rounds or now + (now - last) > until:
                        break
                last = now
        except StepFailed as error:
            self.result.missing.append(f"{load.name}: {error}")

    def _scenarios(self, load: Load, up: Mapping[str, System]) -> list[Scenario]:
        """The systems that can do the load: one that can't must not end the rounds of the others."""
        found = []
        for name, system in up.items():
            if self._variants[name].system == phases.IN_PROCESS and not load.in_process:
                continue
            try:
                system.do(load.trial(self._shape))
            except StepFailed as error:
                self.result.missing.append(f"{load.name}: {name}: {error}")
            else:
                found.append(Scenario(name, system, partial(load.job, self._shape)))
        return found

    def _roof(self, load: Load, variant: Variant, tokens: float) -> float | None:
        return load.roof(self._roofs, self._shape, variant.scheme, tokens) if self._roofs else None


def measure(phase: Phase, shape: Shape, until: float, tiny: bool, out: Path) -> None:
    """Measures all systems with all loads, as often as the time allows."""
    starting = (until - time.monotonic()) * _STARTING_SHARE
    measuring = Measuring(phase, shape, _TINY_ROUNDS if tiny else MIN_ROUNDS, out)
    scratch, todo = Path(tempfile.gettempdir()), loads(shape, tiny, phase.several)
    paths = {scheme: checkpoints.write(shape, scheme, scratch) for scheme in {one.scheme for one in phase.variants}}
    with ExitStack() as stack:
        clients = worker.clients(stack, scratch, _CLIENTS if phase.several else 1)
        starts = {}
        for variant in phase.variants:
            (folder := scratch / variant.label.replace(", ", "-").replace(" ", "-")).mkdir()
            starts[variant.label] = start(variant, shape, paths[variant.scheme], folder, tiny, clients)
        up = measuring.starts(stack.enter_context(together(starts, starting)))
        length = tokens(next(iter(paths.values())))
        for number, load in enumerate(todo):
            now = time.monotonic()
            measuring.load(load, up, length, now + (until - _END_SECONDS - now) / (len(todo) - number))
        measuring.result.is_complete = bool(up)
        measuring.keep()


def start(
    variant: Variant, shape: Shape, path: Path, folder: Path, tiny: bool, clients: Sequence[worker.Worker]
) -> Start:
    """How a system is started; `folder` gets its log."""
    (grpc, http), engine = clients, phases.engine(shape, tiny)
    if variant.system == phases.OURS:
        return partial(systems.ours, {"model": path}, grpc, folder, engine, processes=variant.processes)
    if variant.system == phases.IN_PROCESS:
        return partial(systems.in_process, path, folder, engine, pooling=shape.pooling)
    rust = variant.system == phases.RUST
    return partial(systems.vllm_serve, path, http, folder, engine, pooling=shape.pooling, like_ours=False, rust=rust)


def tokens(path: Path) -> float:
    """The tokens of a text, on average."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    return sum(len(tokenizer.encode(text).ids) for text in SENTENCES) / len(SENTENCES)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("name")
@click.argument("until", type=float)
@click.option("--tiny", is_flag=True)
def main(out: Path, name: str, until: float, tiny: bool) -> None:
    """Run a phase."""
    preload()
    processes.adopt_orphans()
    lifetime.end_with(sys.stdin.fileno())
    [phase] = [one for one in phases.planned(tiny) if one.name == name]
    if phase.shape is None:
        from tuneserve.benchmarks.gpu import roofs

        results.write(out / f"{name}.json", roofs.measure() | {"is_complete": True})
    else:
        measure(phase, phase.shape, until, tiny, out)


if __name__ == "__main__":
    main()
