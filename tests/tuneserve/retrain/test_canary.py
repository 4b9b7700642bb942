"""The way onto a running server: the real server on fake engines, and the client that the command uses."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tuneserve import checkpoint
from tuneserve.client import Client
from tuneserve.errors import StepFailed
from tuneserve.retrain import run
from tuneserve.retrain.canary import Canary
from tuneserve.retrain.policy import CanaryConfig, RetrainConfig
from tuneserve.v1 import checkpoint_pb2 as pb

from ...server.conftest import Served, loopback, served_by


def sealed(directory: Path) -> Path:
    """With a manifest, as checkpoints of finetune have."""
    manifest = pb.Checkpoint(
        task=pb.TASK_SEQUENCE_CLASSIFICATION,
        labels=["neg", "pos"],
        architecture="BertForSequenceClassification",
        max_length=32,
        dtype="float32",
        problem_type=pb.PROBLEM_TYPE_SINGLE_LABEL,
    )
    checkpoint.seal(directory, manifest)
    return directory


@pytest.fixture
async def server(make_bert: Callable[..., Path], tmp_path: Path) -> AsyncIterator[Served]:
    """`a`, of one version; a new one below its models_root."""
    root = tmp_path / "root"
    root.mkdir()
    sealed(make_bert(labels=["neg", "pos"], initializer_range=0.5).rename(root / "0001"))
    async with served_by(loopback({"a": make_bert(labels=["neg", "pos"])}, models_root=root)) as served:
        yield served


@pytest.fixture
def canary(server: Served, tmp_path: Path) -> Callable[..., Callable[[], str]]:
    """canary(**settings) is a function that runs one in a thread, as the server's loop is this one."""

    def make(said: list[str] | None = None, **settings: Any) -> Callable[[], str]:
        root = tmp_path / "root"
        given = {"target": server.app.admin_address, "model": "a", "models_root": root, "percent": 20, "seconds": 0}

        def work() -> str:
            config = CanaryConfig(**given | settings)
            with Client(config.target) as client:
                return Canary(config, client, root / "0001", (said if said is not None else []).append).run()

        return work

    return make


def targets(server: Served) -> dict[str, int]:
    route = server.app.models.route("a")
    assert route is not None
    return {model.id: weight for model, weight in route.targets}


def versions(server: Served) -> set[str]:
    return {model.id for model in server.app.models}


async def test_it_is_promoted_and_the_old_one_unloaded(server: Served, canary: Any) -> None:
    [old], said = targets(server), list[str]()
    assert await asyncio.to_thread(canary(said)) == ""
    [new] = targets(server)
    assert new != old
    assert versions(server) == {new}
    assert said == [f"canary: 20 % of a to {new}, the others to {old}"]
    # A second run, as after a kill just now.
    assert await asyncio.to_thread(canary()) == ""


async def test_a_version_whose_engine_dies_is_rolled_back(server: Served, canary: Any, until: Any) -> None:
    before = targets(server)
    running = asyncio.create_task(asyncio.to_thread(canary(seconds=60)))
    await until(lambda: len(targets(server)) == 2)
    [new] = targets(server).keys() - before.keys()
    assert targets(server) == {**dict.fromkeys(before, 80), new: 20}
    server.app.models.version(*new.split("@")).state = 4  # MODEL_STATE_FAILED
    assert await running == "is failed"
    assert targets(server).keys() == before.keys()
    assert versions(server) == before.keys()


async def test_calls_that_fail_roll_it_back(server: Served, canary: Any, until: Any) -> None:
    before = targets(server)
    metrics = f"http://{server.app.metrics_address}/metrics"
    running = asyncio.create_task(asyncio.to_thread(canary(seconds=60, metrics=metrics, max_error_share=0.4)))
    await until(lambda: len(targets(server)) == 2)
    [new] = targets(server).keys() - before.keys()
    name, version = new.split("@")
    await asyncio.sleep(0.5)
    for code in ("OK", "INTERNAL"):
        server.app.metrics.count_version(name, version, code)
    assert await running == "1 of 2 calls failed"
    assert targets(server).keys() == before.keys()


async def test_enough_calls_end_it_and_too_few_roll_it_back(server: Served, canary: Any, until: Any) -> None:
    before = targets(server)
    metrics = f"http://{server.app.metrics_address}/metrics"
    assert await asyncio.to_thread(canary(metrics=metrics, calls=2)) == "ended 0 calls in time; calls is 2"
    assert targets(server).keys() == before.keys()
    running = asyncio.create_task(asyncio.to_thread(canary(seconds=60, metrics=metrics, calls=2)))
    await until(lambda: len(targets(server)) == 2)
    [new] = targets(server).keys() - before.keys()
    await asyncio.sleep(0.5)
    for _ in range(2):
        server.app.metrics.count_version(*new.split("@"), "OK")
    assert await running == ""
    assert targets(server).keys() == {new}


async def test_what_somebody_else_does_with_the_alias_is_left_alone(server: Served, canary: Any, until: Any) -> None:
    before = targets(server)
    running = asyncio.create_task(asyncio.to_thread(canary(seconds=60)))
    await until(lambda: len(targets(server)) == 2)
    with Client(server.app.admin_address) as client:
        theirs = dict.fromkeys(targets(server), 50)
        await asyncio.to_thread(lambda: client.set_alias("a", theirs))
        with pytest.raises(StepFailed, match="somebody else has moved a"):
            await running
        assert targets(server) == theirs
        # Ended by hand.
        await asyncio.to_thread(lambda: client.set_alias("a", next(iter(before))))


async def test_a_run_that_was_killed_in_the_canary_is_continued(server: Served, canary: Any) -> None:
    [old] = targets(server)
    with Client(server.app.admin_address) as client:
        # All that a killed one has done.
        loaded = await asyncio.to_thread(lambda: client.load_model("a", "0001"))
        await asyncio.to_thread(lambda: list(client.watch_model(loaded.id)))
        await asyncio.to_thread(lambda: client.set_alias("a", {old: 80, loaded.id: 20}))
    assert await asyncio.to_thread(canary()) == ""
    assert targets(server).keys() == {loaded.id}
    assert versions(server) == {loaded.id}


async def test_one_that_cannot_be_loaded_leaves_nothing(
    make_bert: Callable[..., Path], tmp_path: Path, canary: Any, server: Served
) -> None:
    before = targets(server)
    with pytest.raises(StepFailed, match="serves no b"):
        await asyncio.to_thread(canary(model="b"))
    (tmp_path / "root" / "0001" / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(Exception, match=r"path: model.safetensors: content differs"):
        await asyncio.to_thread(canary())
    assert targets(server) == before
    assert versions(server) == before.keys()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": "b"}, r"server\.model: .* serves no b"),
        ({"target": "localhost:1"}, r"server\.target: .*: UNAVAILABLE"),
    ],
)
async def test_a_server_that_cannot_be_changed_is_told_before_training(
    server: Served, tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "pos"}\n')
    root = tmp_path / "root"
    given = {"target": server.app.admin_address, "model": "a", "models_root": root} | wrong
    config = RetrainConfig(
        feedback=tmp_path / "rows.jsonl", checkpoint=root / "0001", output=root / "loop", min_rows=1, server=given
    )
    with pytest.raises(StepFailed, match=said):
        await asyncio.to_thread(run.retrain, config, tmp_path)
    assert not (root / "loop" / "0001-training").exists()


def test_sigterm_ends_what_was_begun() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, run._interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
