"""The comparison of predict with plain vLLM, with systems that only pretend; and its worker with a server that does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.serving import cost_report, predict, small_model, systems
from tuneserve.benchmarks.serving.interleave import Sample, Scenario
from tuneserve.benchmarks.serving.workers import worker


@pytest.mark.parametrize(("rate", "status"), [(99.0, 0), (90.0, 1)])
def test_the_rate_is_promised(rate: float, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @contextmanager
    def start(*given: object, **settings: object) -> Iterator[None]:
        yield None

    def measure(scenarios: list[Scenario], rounds: int, show: object) -> dict[str, list[Sample]]:
        jobs = [scenario.job(1) for scenario in scenarios]
        assert jobs[0] == jobs[1]
        assert (len(jobs[0].texts), jobs[0].max_tokens) in ((2048, 0), (128, 64))
        rates = {"predict": rate, "LLM.encode": 100.0, "LLM.generate": 100.0}
        return {one.name: [Sample(rates[one.name], 1.0, 2.0, 0.5, None, 0.02)] * rounds for one in scenarios}

    for module, name in ((systems, "ours"), (systems, "in_process"), (worker, "started")):
        monkeypatch.setattr(module, name, start)
    monkeypatch.setattr("tuneserve.benchmarks.serving.interleave.measure", measure)
    monkeypatch.setattr(predict, "preload", lambda: None)
    monkeypatch.setattr(cost_report, "RESULTS", tmp_path / "results")
    result = CliRunner().invoke(predict.main, [str(tmp_path), str(tmp_path), "--report"], catch_exceptions=False)
    assert result.exit_code == status, result.output
    ratios = json.loads(result.stdout.splitlines()[-1])["ratios"]
    assert [one["name"] for one in ratios] == ["predict, to LLM.encode", "predict, to LLM.generate"]
    assert {one["ratio"] for one in ratios} == {rate / 100}
    assert [path.name.partition("-predict-")[2] for path in (tmp_path / "results").iterdir()] == ["cpu.md"]


def test_no_two_prompts_begin_alike_and_all_rounds_have_the_same_work() -> None:
    first, second = predict.prompts(1).texts, predict.prompts(2).texts
    assert len({text[:12] for text in (*first, *second)}) == 2 * len(first)
    assert sorted(word for text in first for word in text.split()[1:]) == sorted(
        word for text in second for word in text.split()[1:]
    )


@pytest.mark.engine
def test_both_systems_do_the_same_work(make_bert, make_llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "preload", lambda: None)
    monkeypatch.setattr(predict, "_PROMPTS", 16)
    monkeypatch.setattr(predict, "_SENTENCES", 1)
    monkeypatch.setattr(predict, "_CONTEXT", 256)
    classifier, chat = tmp_path / "classifier", tmp_path / "chat"
    small_model.write(make_bert(max_position_embeddings=256), classifier, pooling=True)
    small_model.write(make_llama(max_position_embeddings=256), chat, pooling=False)
    result = CliRunner().invoke(predict.main, [str(classifier), str(chat), "--rounds", "1"], catch_exceptions=False)
    assert result.exit_code == 1, "one round shows nothing"
    found = json.loads(result.stdout.splitlines()[-1])
    assert set(found["samples"]["classification"]) == {"predict", "LLM.encode"}
    assert set(found["samples"]["generation"]) == {"predict", "LLM.generate"}
    assert found["missing"] == []
