"""Models trained for search: the server answers as they did in training; vectors with their prompts by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tuneserve import checkpoint, samples
from tuneserve.checkpoint import rows
from tuneserve.evaluation import measurement, verify
from tuneserve.evaluation.evaluate import held_out_rows
from tuneserve.serving import serving
from tuneserve.v1 import checkpoint_pb2 as pb

from .conftest import finetuned

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

PLACES = ["Berlin", "Paris", "Rome", "Oslo", "Lima", "Cairo", "Tokyo", "Delhi", "Quito", "Accra"]


class Served(NamedTuple):
    directory: Path
    manifest: pb.Checkpoint
    address: str


@pytest.fixture(scope="module", params=["embedding", "ranking"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("search")
    kinds = [("eat", "kitchen"), ("sleep", "hotels"), ("drive", "streets"), ("read", "libraries")]
    pairs = [
        {"query": f"Where can I {verb} in {place}?", "positive": f"The {noun} of {place} are open to all."}
        for place in PLACES
        for verb, noun in kinds
    ]
    # Nothing says which of these belong together: a search finds some of them by chance.
    pairs += [{"query": f"What is the number of {place}?", "positive": f"{97 * n}"} for n, place in enumerate(PLACES)]
    rows.write(directory / "pairs.jsonl", pairs)
    settings = {"task": request.param, "base_model": str(samples.embedding_model()), "train": "pairs.jsonl"}
    if request.param == "embedding":
        settings["prompts"] = {"query": "query: "}
    finetuned(directory, **settings, test_size=0.5, max_length=32, epochs=2, learning_rate=1e-3)
    manifest = checkpoint.load(directory / "out")
    with serving({measurement.MODEL: directory / "out"}) as addresses:
        yield Served(directory / "out", manifest, addresses.grpc)


def verdict(trained: Served, manifest: pb.Checkpoint) -> verify.Verdict:
    held_out = held_out_rows(trained.directory, trained.manifest)
    return verify.verify_at(trained.address, measurement.MODEL, trained.directory, manifest, held_out)


def test_the_server_answers_as_transformers_does(trained: Served) -> None:
    found = verdict(trained, trained.manifest)
    assert found.is_good, found
    if trained.manifest.task == pb.TASK_EMBEDDING:
        assert found.largest < 0.001
        # Another pooling would have been seen.
        other = pb.Checkpoint()
        other.CopyFrom(trained.manifest)
        other.pooling = "cls"
        assert not verdict(trained, other).is_good


def test_the_served_search_is_as_good_as_the_trained_one(trained: Served) -> None:
    held_out = held_out_rows(trained.directory, trained.manifest)
    found = measurement.measure_at(trained.address, trained.manifest, held_out, trained.directory)
    metrics = trained.manifest.lineage[-1].metrics
    assert found.metrics == pytest.approx({name: metrics[name] for name in found.metrics}, abs=0.05)
    assert 0.4 < found.metrics["ndcg@10"] < 1
