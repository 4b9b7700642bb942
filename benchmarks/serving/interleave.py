"""Interleaved rounds, each with every scenario once: other load on the machine affects all scenarios alike.

One system is under load at a time. Before each job all systems have become idle: a vLLM engine goes on polling for
work, at the cost of a whole core, for a second after its last job. Every round begins with another scenario.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from tuneserve.benchmarks import processes
from tuneserve.benchmarks.serving.systems import System
from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.errors import StepFailed

# Idle engines still use a little CPU time now and then.
_REST_SHARE = 0.1  # of one core, for all systems together
_REST_SECONDS = 0.3
_REST_PATIENCE = 30.0


@dataclass(frozen=True)
class Scenario:
    """A system, and how jobs are sent to it. A seed determines the job."""

    name: str
    system: System
    job: Callable[[int], Job]
    model: str | None = None  # the system's first one, when None
    counts_tokens: bool = True  # whether the system tells how many it read, as the others do


@dataclass(frozen=True)
class Sample:
    """One job by one scenario. CPU times are milliseconds for each text or output token."""

    rate: float  # texts, or output tokens, a second
    front_ms: float  # of the process that was started
    engine_ms: float  # of its children
    client_ms: float  # of the measuring process; 0 where that is the system itself
    first_token_ms: float | None
    others_cores: float  # cores that all other programs of the machine used meanwhile
    gap_ms: float | None = None  # between messages of a stream, in the median
    token_ms: float | None = None  # time per output token after a stream's first message (TPOT), on average

    @property
    def system_ms(self) -> float:
        """CPU time of all of the system's processes."""
        return self.front_ms + self.engine_ms


def measure(scenarios: Sequence[Scenario], rounds: int, show: Callable[[str], None]) -> dict[str, list[Sample]]:
    """Runs all scenarios `rounds` times, after a first round that does not count.

    Raises StepFailed if two scenarios of one round did not do the same work.
    """
    samples: dict[str, list[Sample]] = {scenario.name: [] for scenario in scenarios}
    for number, found in zip(range(rounds + 1), endless(scenarios), strict=False):
        for name, sample in found.items() if number else ():
            samples[name].append(sample)
            show(f"round {number}: {name}: {sample.rate:.1f}/s")
    return samples


def endless(scenarios: Sequence[Scenario], rest: bool = True) -> Iterator[dict[str, Sample]]:
    """Runs all scenarios again and again, and yields what each round measured; the first one warms up.

    Without `rest`, a job does not wait until all systems are idle. Raises StepFailed as `measure` does.
    """
    systems = list({scenario.system.session: scenario.system for scenario in scenarios}.values())
    seeds = itertools.count(1)
    for number in itertools.count():
        done: dict[str, tuple[Outcome, Sample]] = {}
        first = number % len(scenarios)
        for scenario in [*scenarios[first:], *scenarios[:first]]:
            if rest:
                _rest(systems)
            done[scenario.name] = _one(scenario, systems, next(seeds))
        counts = {name: outcome.counts for name, (outcome, _) in done.items()}
        told = {done[one.name][0].prompt_tokens for one in scenarios if one.counts_tokens}
        if len({(texts, out) for texts, _, out in counts.values()}) > 1 or len(told) > 1:
            raise StepFailed(f"not the same work (texts, tokens in, tokens out): {counts}")
        yield {name: sample for name, (_, sample) in done.items()}


def _one(scenario: Scenario, systems: Sequence[System], seed: int) -> tuple[Outcome, Sample]:
    system = scenario.system
    sessions = {one.session for one in systems} | {one.worker.process.pid for one in systems}
    own, before = processes.usage(system.session), {session: processes.usage(session) for session in sessions}
    machine, mine, started = processes.machine_cpu(), time.process_time(), time.perf_counter()
    outcome = system.do(scenario.job(seed), scenario.model)
    seconds = time.perf_counter() - started
    own = processes.usage(system.session).since(own)
    ours = sum(processes.usage(session).since(before[session]).cpu for session in sessions)
    others = processes.machine_cpu() - machine - ours - (time.process_time() - mine)
    per_unit, later = 1000 / (outcome.output_tokens or outcome.texts), outcome.output_tokens - len(outcome.first_tokens)
    alone = system.worker.process.pid == system.session
    return outcome, Sample(
        rate=outcome.rate,
        front_ms=own.leader * per_unit,
        engine_ms=own.others * per_unit,
        client_ms=0.0 if alone else outcome.client_cpu * per_unit,
        first_token_ms=median(outcome.first_tokens) * 1000 if outcome.first_tokens else None,
        others_cores=max(0.0, others / seconds),
        gap_ms=median(outcome.gaps) * 1000 if outcome.gaps else None,
        token_ms=sum(outcome.gaps) * 1000 / later if outcome.gaps else None,
    )


def _rest(systems: Sequence[System]) -> None:
    """Waits until all systems are idle. Raises StepFailed if one never is."""
    deadline = time.monotonic() + _REST_PATIENCE
    while time.monotonic() < deadline:
        before = {system.session: processes.usage(system.session).cpu for system in systems}
        time.sleep(_REST_SECONDS)
        used = {session: processes.usage(session).cpu - cpu for session, cpu in before.items()}
        if sum(used.values()) <= _REST_SHARE * _REST_SECONDS + 2 / os.sysconf("SC_CLK_TCK"):
            return
    raise StepFailed(f"a system without any calls does not become idle: {used}")
