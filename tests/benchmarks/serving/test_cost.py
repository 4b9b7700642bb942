"""The whole comparison with systems that only pretend: what is run, shown, written and promised."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tuneserve.benchmarks import processes
from tuneserve.benchmarks.gpu import checkpoints as checkpoints_without_weights
from tuneserve.benchmarks.gpu.shapes import TINY
from tuneserve.benchmarks.serving import cost, cost_report, systems
from tuneserve.benchmarks.serving.interleave import Sample, Scenario
from tuneserve.benchmarks.serving.load.open_loop import Result as Measured
from tuneserve.benchmarks.serving.overload import Overload, Round
from tuneserve.benchmarks.serving.workers import worker
from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.errors import StepFailed
from tuneserve.machine.tiers import measured_on, this_tier


class Pretender:
    """A system of a given speed; remembers what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.target, self.model, self.session = "127.0.0.1:1", "model", 1
        self.jobs: list[Job] = []

    def do(self, job: Job, model: str | None = None) -> Outcome:
        self.jobs.append(job)
        return Outcome(seconds=1, texts=len(job.texts))


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    for name in ("sentiment", "sentiment-w8a8", "chat"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"vocab_size": 500}')
    return [str(tmp_path / "sentiment"), str(tmp_path / "chat")]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, object]]:
    """Replaces every system; returns the list of those that were started, with their settings."""
    found: list[tuple[str, object]] = []

    def replace(name: str) -> None:
        @contextmanager
        def start(*given: object, **settings: object) -> Iterator[Pretender]:
            found.append((name, (*given, settings)))
            yield Pretender(name)

        monkeypatch.setattr(systems, name, start)

    for name in ("ours", "vllm_serve", "in_process"):
        replace(name)
    monkeypatch.setattr(cost, "preload", lambda: None)
    monkeypatch.setattr(cost, "restarted", lambda system, first: 0.25)  # there is no engine
    monkeypatch.setattr(cost_report, "RESULTS", tmp_path / "results")
    return found


# Speeds by scenario; twice as fast is twice the rate in every round.
SPEEDS = {
    "LLM.generate": 100.0,
    "LLM.encode": 100.0,
    "vllm serve, single texts": 50.0,
    "ours w8a8, batches": 147.0,
}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Replaces the rounds; returns the scenarios by the system that they asked."""
    seen: dict[str, list[str]] = {}

    def measure(scenarios: list[Scenario], rounds: int, show: object) -> dict[str, list[Sample]]:
        samples = {}
        for scenario in scenarios:
            seen.setdefault(scenario.system.name, []).append(scenario.name)  # type: ignore[attr-defined]
            job = scenario.job(1)
            assert len(job.prompts) * 32 + len(job.texts) == 1024
            rate = SPEEDS.get(scenario.name, 98.0)
            samples[scenario.name] = [Sample(rate, 1.5, 2.5, 0.25, 12.0 if job.stream else None, 0.02)] * rounds
        return samples

    monkeypatch.setattr("tuneserve.benchmarks.serving.interleave.measure", measure)

    async def overload(target: str, model: str, session: int, *, rounds: int, show: object) -> Overload:
        figures = {"reject_ms_p99": 4.0, "failed_ms_p99": None}
        result = Measured(100, 20, 1, 2000, 2000, 150, {"RESOURCE_EXHAUSTED": 1850}, 1850, 9.5, figures, 0.8)
        return Overload(10, 60.0, [Round(10.0, result)] * rounds, 3)

    monkeypatch.setattr(cost, "overload", overload)
    return seen


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cost.main, arguments, catch_exceptions=False)


def test_everything(
    checkpoints: list[str],
    started: list[tuple[str, object]],
    measured: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "STARTS", [])  # They take no time here, so their ratio would be chance.
    result = run(*checkpoints, "--starts", "2", "--report")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    verdicts = {one["name"]: one["verdict"] for one in found["ratios"]}
    assert {name for name, verdict in verdicts.items() if verdict == "kept"} == {
        "answers under ten times the load, to the peak",
        "streamed, to LLM.generate",
        "unary, to LLM.generate",
        "streamed, to vllm serve",
        "batches, to LLM.encode",
        "ClassifyStream, to LLM.encode",
        "single texts, to vllm serve",
    } | ({"w8a8, to bf16, batches"} if this_tier().int8_fast else set())
    assert set(verdicts.values()) == {"kept", None}
    assert (found["ratios"][0]["ratio"], found["ratios"][0]["interval"]) == (0.98, [0.98, 0.98])
    assert found["rounds"] == found["ratios"][0]["rounds"] == found["ratios"][-1]["rounds"] == 15
    assert {name: len(seconds) for name, seconds in found["starts_seconds"].items()} == {
        "ours": 2,
        "ours, its engine killed": 2,
        "vllm serve": 2,
        "defaults, generation: ours": 1,
        "defaults, generation: vllm serve": 1,
        "defaults, classification: ours": 1,
        "defaults, classification: vllm serve": 1,
    }
    assert [one["of_peak"] for one in found["overload"]["rounds"]] == [0.95] * 15
    assert found["missing"] == []
    assert len(started) == 4 + 4 + 4 + 2 + 2 + 1
    # The quantized form is measured where it is there.
    assert "ours w8a8, batches" in measured["ours"]
    assert "ours w8a8, streamed" not in measured["ours"]
    [written] = (tmp_path / "results").iterdir()
    text = written.read_text()
    assert "| streamed, to LLM.generate | 0.98 (0.98 to 0.98) | 15 | ≥ 0.96 | kept |" in text
    assert "95 % interval by Student's t" in text
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(titles) == 7
    assert all(measured_on() in title for title in titles)
    assert found["machine"]["tier"] == measured_on()
    assert "| ours, streamed | 98.0 (98.0 to 98.0) | 12 | 1.50 | 2.50 | 0.25 |" in text
    assert str(tmp_path) not in text + result.stdout


def test_same_settings_for_all_and_none_for_the_defaults(
    checkpoints: list[str], started: list[tuple[str, object]], measured: dict[str, list[str]]
) -> None:
    run(*checkpoints, "--only", "generation", "--only", "classification", "--only", "defaults")
    engines = [[one for one in given if isinstance(one, systems.Engine)] for _, given in started]  # type: ignore[attr-defined]
    generation, classification = engines[0][0], engines[6][0]
    assert engines == [[generation]] * 4 + [[]] * 2 + [[classification]] * 4 + [[]] * 2
    assert classification.block_size is None
    layouts = [given[-1].get("like_ours") for name, given in started if name == "vllm_serve"]  # type: ignore[index]
    assert layouts == [True, False, False] * 2


def test_a_broken_promise_is_a_failure(
    checkpoints: list[str],
    started: list[tuple[str, object]],
    measured: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SPEEDS, "ours, batches", 90.0)
    result = run(*checkpoints, "--only", "generation", "--only", "classification")
    assert result.exit_code == 1
    ratios = json.loads(result.stdout.splitlines()[-1])["ratios"]
    assert [one["name"] for one in ratios if one["verdict"] == "not kept"] == ["batches, to LLM.encode"]
    assert "not kept" in result.stdout


def test_too_few_rounds_keep_no_promise(
    checkpoints: list[str], started: list[tuple[str, object]], measured: dict[str, list[str]]
) -> None:
    result = run(*checkpoints, "--rounds", "14", "--only", "generation", "--only", "classification")
    assert result.exit_code == 1
    ratios = json.loads(result.stdout.splitlines()[-1])["ratios"]
    assert {one["verdict"] for one in ratios} == {"not shown", None}
    assert {one["ratio"] for one in ratios if one["verdict"]} == {0.98, 1.0, 1.96} | (
        {1.5} if this_tier().int8_fast else set()
    )


def test_what_fails_takes_nothing_else_with_it(
    checkpoints: list[str],
    started: list[tuple[str, object]],
    measured: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*given: object, **settings: object) -> object:
        raise StepFailed("vllm serve ended with status 1", "its last words")

    monkeypatch.setattr(systems, "vllm_serve", failing)
    result = run(*checkpoints, "--starts", "1")
    assert result.exit_code == 1
    found = json.loads(result.stdout.splitlines()[-1])
    assert [line.split(":")[0] for line in found["missing"]] == [
        "start to first answer",
        "generation",
        "defaults, generation",
        "classification",
        "defaults, classification",
    ]
    assert found["overload"]
    assert "its last words" in result.stderr
    assert "Not measured: generation: vllm serve ended with status 1" in result.stdout


@pytest.mark.engine
def test_an_engine_that_is_killed_is_replaced(tmp_path: Path) -> None:
    path = checkpoints_without_weights.write(TINY[1], "bf16", tmp_path)
    engine = systems.Engine(max_model_len=256, block_size=32, load_format="dummy")
    with ExitStack() as stack:
        grpc, _ = worker.clients(stack, tmp_path)
        system = stack.enter_context(systems.ours({"model": path}, grpc, tmp_path, engine))
        first = Job(prompts=[[5, 6, 7]], max_tokens=1)
        before = processes.named(system.session, "EngineCore")
        seconds = cost.restarted(system, first)
        after = processes.named(system.session, "EngineCore")
        assert system.do(first).output_tokens == 1
    assert seconds > 0.5
    assert len(before) == len(after) == 1
    assert before != after


def test_a_server_without_an_engine_is_a_failed_step() -> None:
    with pytest.raises(StepFailed, match="no engine that could be killed"):
        cost.restarted(systems.System(os.getpid(), None, "m"), Job(texts=["a"]))  # type: ignore[arg-type]
