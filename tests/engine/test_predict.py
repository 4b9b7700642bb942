"""`tuneserve predict`: the answers of a file's rows are those of single calls; a run that was killed goes on."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tuneserve.client import Client
from tuneserve.predict import run
from tuneserve.predict.run import Job
from tuneserve.predict.source import Shard, Source
from tuneserve.predict.tasks import Options

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

WORDS = ["Angela Merkel", "saw", "a", "good", "film", "bad", "one", "in", "Berlin", "with music of", "São Paulo"]


def texts(count: int) -> list[str]:
    chance = random.Random(count)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, 40))) for _ in range(count)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


Predict = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def predict(real, tmp_path, monkeypatch) -> Predict:
    """predict(name, rows): with the models of the shared server."""

    @contextmanager
    def serving(directory: Path, task: object) -> Iterator[str]:
        yield real.server.addresses.grpc

    monkeypatch.setattr(run, "_serving", serving)

    def answered(name: str, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        monkeypatch.setattr(run, "_MODEL", name)
        output = tmp_path / "out.jsonl"
        source = Source.at(write(tmp_path / "rows.jsonl", rows), Shard())
        run.predict(Job(real.directories[name], source, options=Options(**options)), output, overwrite=True)
        return [json.loads(line) for line in output.read_text().splitlines()]

    return answered


@pytest.fixture
def client(real) -> Iterator[Client]:
    with Client(real.server.addresses.grpc) as client:
        yield client


def test_labels_are_those_of_single_calls(predict, client, monkeypatch):
    monkeypatch.setattr("tuneserve.predict.source.WINDOW", 100)
    given = [{"id": number, "text": text} for number, text in enumerate(texts(230))]
    given[3] |= {"text_pair": "and another"}
    given[7] = {"id": 7, "text": ""}
    found = predict("sentiment", given, all_scores=True)
    assert [row["id"] for row in found] == list(range(230))
    for row in (found[0], found[3], found[229]):
        pair = (row["text"], row["text_pair"]) if "text_pair" in row else row["text"]
        best = client.classify("sentiment", [pair])[0].best
        assert row["predicted_label"] == best.label
        assert row["predicted_score"] == pytest.approx(best.score, abs=1e-4)
        assert sum(row["predicted_scores"].values()) == pytest.approx(1, abs=1e-5)
    assert found[7] == {"id": 7, "text": "", "predicted_error": "text is empty or blank; a text is needed"}


def test_several_labels(predict):
    [row] = predict("topics", [{"text": "a film"}], all_scores=True)
    assert row["predicted_labels"] == [label for label, score in row["predicted_scores"].items() if score >= 0.5]


def test_entities(predict, client):
    found = predict("ner", [{"text": text} for text in texts(20)])
    assert any(row["predicted_entities"] for row in found)
    for row in found:
        assert all(row["text"][one["start"] : one["end"]] == one["text"] for one in row["predicted_entities"])


def test_a_call_that_the_model_can_t_answer_is_an_error_of_its_row(predict):
    [row] = predict("sentiment", [{"query": "a film", "candidates": ["good", "bad"]}])
    assert "label" in row["predicted_error"], "two labels: which one ranks is not said"


def test_vectors(predict, client):
    [row] = predict("vectors", [{"text": "a film"}])
    assert row["predicted_embedding"] == pytest.approx(client.embed("vectors", "a film")[0].values, abs=1e-4)


def test_answers(predict, client):
    asked = [{"role": "user", "content": "Name a city."}]
    rows = [{"messages": asked}, {"prompt": "Once upon a time"}, {"messages": [{"role": "owl", "content": 7}]}]
    found = predict("chat", rows, max_tokens=8)
    assert found[0]["predicted_text"] == client.chat("chat", asked, max_tokens=8, temperature=0).text
    assert found[1]["predicted_finish_reason"] == "length"
    assert found[2].keys() == {"messages", "predicted_error"}


def test_a_run_that_was_killed_goes_on(real, tmp_path):
    count = 4000
    rows = write(tmp_path / "rows.jsonl", [{"id": number, "text": text} for number, text in enumerate(texts(count))])
    output, parts = tmp_path / "out.csv", tmp_path / "out.csv.parts"
    command = [
        sys.executable,
        "-m",
        "tuneserve.cli",
        "predict",
        real.directories["sentiment"],
        rows,
        output,
        "--resume",
    ]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(parts.glob("*.jsonl")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.kill()
    _, told = first.communicate()
    kept = sorted(path.name for path in parts.glob("*.jsonl"))
    assert kept, told
    assert not output.exists()
    before = {name: (parts / name).read_bytes() for name in kept}
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert f"{count - 1024 * len(before)} rows answered, 0 of them with an error" in second.stderr
    lines = output.read_text().splitlines()
    assert lines[0] == "id,text,predicted_label,predicted_score"
    assert [line.split(",")[0] for line in lines[1:]] == [str(number) for number in range(count)]
    assert not parts.exists()
