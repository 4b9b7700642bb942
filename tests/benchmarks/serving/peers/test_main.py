"""The command, with peers that only pretend."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from tuneserve.benchmarks.serving import interleave, systems
from tuneserve.benchmarks.serving.interleave import Sample, Scenario
from tuneserve.benchmarks.serving.peers import __main__ as peers
from tuneserve.benchmarks.serving.peers.peer import BATCHES, STREAMS, Peer, Setting
from tuneserve.benchmarks.serving.systems import System
from tuneserve.benchmarks.serving.workers import worker
from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.errors import StepFailed

RATES = {"ours": 100.0, "ours w8a8": 150.0, "onnx-int8": 200.0, "transformers": 50.0, "llama.cpp-q8_0": 80.0}


class Answers:
    """Answers each text or prompt in a system's place; every `wrong`th otherwise."""

    def __init__(self, wrong: int = 0) -> None:
        self.wrong = wrong

    def do(self, job: Job) -> Outcome:
        assert job.connections == 1, "answers would have no order"
        assert job.answers
        numbers = range(1, len(job.texts or job.prompts) + 1)
        return Outcome(answers=["bad" if self.wrong and not number % self.wrong else "good" for number in numbers])


@contextmanager
def system(wrong: int, *given: object) -> Iterator[System]:
    yield System(1, Answers(wrong), "model")  # type: ignore[arg-type]


@contextmanager
def broken(setting: Setting) -> Iterator[System]:
    raise StepFailed("broken: uv ended with 1:\n no such package", "its last words")
    yield


@pytest.fixture(autouse=True)
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    classifiers = [
        Peer("onnx-int8", lambda setting: system(50), is_int8=True),
        Peer("vllm-serve", broken),
        Peer("transformers", lambda setting: system(2), [BATCHES], counts_tokens=False),
    ]
    chats = [Peer("llama.cpp-q8_0", lambda setting: system(0), [STREAMS], is_int8=True)]

    def measure(scenarios: Sequence[Scenario], rounds: int, show: object) -> dict[str, list[Sample]]:
        jobs = [one.job(1) for one in scenarios]
        sent = {(len(one.texts), len(one.prompts), one.stream, one.batch, one.connections) for one in jobs}
        assert sent <= {(512, 0, False, 1, 64), (512, 0, False, 64, 4)} or sent == {(0, 32, True, 1, 32)}
        assert [one.name for one in scenarios if not one.counts_tokens] in ([], ["transformers, batches"])
        rates = {one.name: RATES[one.name.rpartition(", ")[0]] for one in scenarios}
        return {name: [Sample(rate, 1.0, 1.0, 0.5, None, 0.02)] * rounds for name, rate in rates.items()}

    monkeypatch.setattr(peers, "CLASSIFIERS", classifiers)
    monkeypatch.setattr(peers, "CHATS", chats)
    monkeypatch.setattr(interleave, "measure", measure)
    monkeypatch.setattr(systems, "ours", lambda *given, **settings: system(0))
    monkeypatch.setattr(worker, "clients", lambda *given: (SimpleNamespace(), SimpleNamespace()))
    monkeypatch.setattr(peers, "preload", lambda: None)


@pytest.fixture
def run(tmp_path: Path, make_llama: Callable[[], Path]) -> Callable[..., Result]:
    """The command, of a classifier with and a chat model without another one in w8a8."""
    classifier = tmp_path / "model"
    for path in (classifier, tmp_path / "model-w8a8"):
        path.mkdir()
    chat = str(make_llama())
    return lambda *flags: CliRunner().invoke(peers.main, [str(classifier), chat, *flags], catch_exceptions=False)


def test_each_peer_is_compared_with_ours_and_a_broken_one_is_left_out(run, tmp_path: Path) -> None:
    result = run("--rounds", "3", "--report", str(tmp_path / "report.md"))
    assert result.exit_code == 1, "not all were measured"
    found = json.loads(result.stdout.splitlines()[-1])
    assert {one["name"]: one["ratio"] for one in found["ratios"] if "CPU" not in one["name"]} == {
        "ours, single texts, to onnx-int8": 0.5,
        "ours, batches, to onnx-int8": 0.5,
        "ours w8a8, single texts, to onnx-int8": 0.75,
        "ours w8a8, batches, to onnx-int8": 0.75,
        "ours, batches, to transformers": 2.0,
        "ours, streamed, to llama.cpp-q8_0": 1.25,
    }
    assert [one["name"] for one in found["ratios"] if "CPU, ours, " in one["name"]] == [
        "CPU, ours, single texts, to onnx-int8",
        "CPU, ours, batches, to onnx-int8",
        "CPU, ours, batches, to transformers",
        "CPU, ours, streamed, to llama.cpp-q8_0",
    ]
    assert found["missing"] == ["vllm-serve: broken: uv ended with 1: no such package"]
    assert "its last words" in result.stderr
    texts = found["answers"]["onnx-int8, classification"]["texts"]
    report = (tmp_path / "report.md").read_text()
    assert f"| onnx-int8, classification | {texts - texts // 50} of {texts} |  |" in report
    assert f"| transformers, classification | {texts - texts // 2} of {texts} | answers otherwise |" in report
    assert f"| llama.cpp-q8_0, generation | {texts} of {texts} |  |" in report
    assert "Not measured: vllm-serve" in report
    assert "texts a second" in report
    assert "output tokens a second" in report
    assert str(tmp_path) not in report


def test_peers_are_chosen_by_name(run) -> None:
    result = run("--peer", "transformers", "--rounds", "2")
    assert result.exit_code == 0
    assert json.loads(result.stdout.splitlines()[-1])["answers"].keys() == {"transformers, classification"}
    assert run("--peer", "mine").exit_code == 2
