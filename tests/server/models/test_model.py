"""One version of a model, on a fake engine and without a server: how it is loaded, answers, drains and ends."""

import pytest

from tuneserve import checkpoint
from tuneserve.server.config import ModelConfig
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.model import Model


@pytest.mark.parametrize(("task", "given", "level"), [("bert", 48, "WARNING"), ("llama", None, "INFO")])
async def test_reading_more_than_was_trained_is_said_in_one_line(
    served, make_bert, make_llama, caplog, task, given, level
):
    directory = make_bert("ForSequenceClassification", ["neg", "pos"]) if task == "bert" else make_llama()
    manifest = checkpoint.describe(directory)
    manifest.max_length = 16
    manifest.lineage.add(name="finetune")
    checkpoint.seal(directory, manifest)
    model = Model("m", ModelConfig(path=directory, max_length=given), checkpoint.load(directory), Metrics())

    async def make_engine(*_):
        return type(served.engines["chat"])(2, max_length=48)

    with caplog.at_level("INFO", "tuneserve"):
        await model.load(make_engine)
    [said] = [record for record in caplog.records if "trained" in record.message]
    assert (said.message, said.levelname) == ("m reads 48 tokens; it was trained and measured at 16", level)
