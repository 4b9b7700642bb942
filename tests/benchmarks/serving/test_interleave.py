"""Rounds over systems that only pretend to work."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from tuneserve.benchmarks.serving.interleave import Scenario, endless, measure
from tuneserve.benchmarks.serving.systems import System
from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.errors import StepFailed


@dataclass
class Pretender:
    """A worker that notes its jobs and answers at once."""

    process: object
    done: list[tuple[str, str]] = field(default_factory=list)
    missing: int = 0
    tokens: int = 0

    def do(self, job: Job) -> Outcome:
        self.done.append((job.model, job.texts[0]))
        texts, cpu = len(job.texts) - self.missing, 0.001 * len(job.texts)
        return Outcome(seconds=0.5, texts=texts, prompt_tokens=self.tokens, client_cpu=cpu)


@pytest.fixture
def session() -> Iterator[int]:
    """A program that rests."""
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.communicate()


def job(seed: int) -> Job:
    return Job(texts=[f"job {seed}"] * 4)


def test_every_scenario_once_a_round_and_another_one_first(session: int) -> None:
    worker = Pretender(SimpleNamespace(pid=session))
    system = System(session, worker, "m")  # type: ignore[arg-type]
    scenarios = [Scenario("a", system, job), Scenario("b", system, job, "other"), Scenario("c", system, job)]
    shown: list[str] = []
    samples = measure(scenarios, 2, shown.append)
    assert [line.split(": ")[:2] for line in shown] == [
        ["round 1", "b"],
        ["round 1", "c"],
        ["round 1", "a"],
        ["round 2", "c"],
        ["round 2", "a"],
        ["round 2", "b"],
    ]
    # The first round does not count, and no job comes twice.
    assert [name for name, _ in worker.done] == ["m", "other", "m", "other", "m", "m", "m", "m", "other"]
    assert len({text for _, text in worker.done}) == 9
    assert {name: [sample.rate for sample in each] for name, each in samples.items()} == {n: [8.0, 8.0] for n in "abc"}
    # The system measures itself here: what the client cost is the front end's.
    assert samples["a"][0].client_ms == 0
    assert samples["a"][0].first_token_ms is None


def test_a_client_of_its_own_has_its_own_cost(session: int) -> None:
    system = System(session, Pretender(SimpleNamespace(pid=1)), "m")  # type: ignore[arg-type]
    assert measure([Scenario("a", system, job)], 1, lambda line: None)["a"][0].client_ms == pytest.approx(1)


def test_streams_have_times_of_their_tokens(session: int) -> None:
    class Streams(Pretender):
        def do(self, job: Job) -> Outcome:
            return Outcome(seconds=1, output_tokens=10, first_tokens=[0.5, 0.7], gaps=[0.1, 0.2, 0.1])

    system = System(session, Streams(SimpleNamespace(pid=1)), "m")  # type: ignore[arg-type]
    [sample] = measure([Scenario("a", system, job)], 1, lambda line: None)["a"]
    assert [sample.first_token_ms, sample.gap_ms, sample.token_ms] == pytest.approx([600, 100, 50])


def test_rounds_go_on_until_nobody_wants_more(session: int) -> None:
    worker = Pretender(SimpleNamespace(pid=session))
    scenarios = [Scenario(name, System(session, worker, "m"), job) for name in "ab"]  # type: ignore[arg-type]
    found = list(itertools.islice(endless(scenarios, rest=False), 3))
    assert [list(one) for one in found] == [["a", "b"], ["b", "a"], ["a", "b"]]
    assert len(worker.done) == 6


def test_less_work_is_no_better_result(session: int) -> None:
    whole, part = (Pretender(SimpleNamespace(pid=session), missing=missing) for missing in (0, 1))
    scenarios = [Scenario(str(one.missing), System(session, one, "m"), job) for one in (whole, part)]  # type: ignore[arg-type]
    with pytest.raises(StepFailed, match=r"not the same work.*'0': \(4, 0, 0\), '1': \(3, 0, 0\)"):
        measure(scenarios, 1, lambda line: None)


def test_tokens_are_compared_where_all_count_them_alike(session: int) -> None:
    def told(name: str, tokens: int, counts_tokens: bool = True) -> Scenario:
        one = Pretender(SimpleNamespace(pid=session), tokens=tokens)
        return Scenario(name, System(session, one, "m"), job, counts_tokens=counts_tokens)  # type: ignore[arg-type]

    assert measure([told("a", 8), told("b", 8), told("c", 9, False)], 1, lambda line: None).keys() == {"a", "b", "c"}
    with pytest.raises(StepFailed, match=r"not the same work.*'b': \(4, 9, 0\)"):
        measure([told("a", 8), told("b", 9)], 1, lambda line: None)


def test_a_system_that_works_unasked_is_no_background(monkeypatch: pytest.MonkeyPatch) -> None:
    # Over a second, also a busy machine lets it work.
    monkeypatch.setattr("tuneserve.benchmarks.serving.interleave._REST_SECONDS", 1.0)
    monkeypatch.setattr("tuneserve.benchmarks.serving.interleave._REST_PATIENCE", 1.0)
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        system = System(process.pid, Pretender(process), "m")  # type: ignore[arg-type]
        try:
            with pytest.raises(StepFailed, match="does not become idle"):
                measure([Scenario("a", system, job)], 1, lambda line: None)
        finally:
            process.kill()
