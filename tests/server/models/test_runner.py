"""What runs a version, on a fake engine: it is started, warmed up, and started again."""

import pytest

from tuneserve import checkpoint
from tuneserve.errors import CheckpointError
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.making import EngineFactory
from tuneserve.server.models.runner import Runner

from ..troubled_engine import TroubledEngine


def making(engine: TroubledEngine) -> EngineFactory:
    async def make(*_) -> TroubledEngine:
        return engine

    return make


@pytest.fixture
async def runner(make_bert):
    directory = make_bert("ForSequenceClassification", ["neg", "pos"])
    checkpoint.seal(directory, checkpoint.describe(directory))
    one = Runner("m", ModelConfig(path=directory, redact=("email",)), checkpoint.load(directory))
    yield one
    await one.close()


async def test_before_its_first_engine_there_is_nothing_to_end(runner):
    assert (runner.cpu_seconds(), runner.max_length) == ({}, 0)
    await runner.end_engine()
    await runner.close()


async def test_all_but_the_engine_is_kept_when_it_starts_again(runner):
    first, second = TroubledEngine(2), TroubledEngine(2)
    await runner.start(making(first))
    assert (runner.engine, runner.max_length) == (first, 32)
    assert runner.cpu_seconds().keys() == first.cpu_seconds().keys()
    kept = runner.tokenizer, runner.redactor, runner.constraints
    await runner.end_engine()
    assert (first.killed.is_set(), first.closed) == (True, True)
    await runner.start(making(second))
    assert runner.engine is second
    assert (runner.tokenizer, runner.redactor, runner.constraints) == kept
    await runner.warm_up()
    assert [ticket.request_id for ticket in second.tickets] == ["warm-up"]


async def test_files_that_changed_are_not_those_of_the_version(runner):
    await runner.verify()
    weights = runner.config.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError):
        await runner.verify()


@pytest.mark.parametrize(("task", "given", "level"), [("bert", 48, "WARNING"), ("llama", None, "INFO")])
async def test_reading_more_than_was_trained_is_said_in_one_line(make_bert, make_llama, caplog, task, given, level):
    directory = make_bert("ForSequenceClassification", ["neg", "pos"]) if task == "bert" else make_llama()
    manifest = checkpoint.describe(directory)
    manifest.max_length = 16
    manifest.lineage.add(name="finetune")
    checkpoint.seal(directory, manifest)
    runner = Runner("m", ModelConfig(path=directory, max_length=given), checkpoint.load(directory))
    with caplog.at_level("INFO", "tuneserve"):
        await runner.start(making(TroubledEngine(2, max_length=48)))
    await runner.close()
    [said] = [record for record in caplog.records if "trained" in record.message]
    assert (said.message, said.levelname) == ("m reads 48 tokens; it was trained and measured at 16", level)
