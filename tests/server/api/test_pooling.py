"""Texts on their way through a model that gives numbers: checked, counted, and kept for the log where that is asked."""

import pytest

from tuneserve.server.api import pooling
from tuneserve.server.call import context
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.place import admitted
from tuneserve.v1 import classification_pb2 as pb


@pytest.fixture
def call() -> context.Call:
    one = context.Call("req-1", "Classify", Tenant("acme"), {}, Metrics())
    context.begin(one)
    return one


@pytest.fixture
def model(served):
    return served.app.models.latest("sentiment")


@pytest.fixture
async def place(call, model):
    async with admitted(model, pb.ClassifyRequest()) as (place, _):
        yield place


def test_texts_are_kept_only_where_the_settings_say_so(call):
    pooling.note(["a", ("b", "c")])
    assert call.content is None
    call.content = {}
    pooling.note(["a", ("b", "c")])
    pooling.note(["d"])
    assert call.content == {"prompt": ["a", "b", "c", "d"]}


async def test_texts_become_tokens_that_the_model_takes(place, model):
    [one, pair] = await pooling.encoded(place, ["the film", ("the", "film")], "inputs[{}]", truncate=False)
    assert (one.length, pair.length) == (4, 5)
    assert pair.encoded.pair_start is not None
    [cut] = await pooling.encoded(place, ["film " * 99], "inputs[{}]", truncate=True)
    assert (cut.length, cut.truncated) == (model.engine.max_length, True)


async def test_a_text_that_is_too_long_is_named(place, model):
    most = model.engine.max_length
    await pooling.encoded(place, ["film " * (most - 2)], "inputs[{}]", truncate=False)
    with pytest.raises(InvalidInput, match=rf"^inputs\[1\]: has {most + 1} tokens, the model takes {most}"):
        await pooling.encoded(place, ["a", "film " * (most - 1)], "inputs[{}]", truncate=False)


async def test_a_token_that_the_engine_lacks_never_reaches_it(place, served, monkeypatch):
    monkeypatch.setattr(served.engines["sentiment"], "vocab_size", 5)
    with pytest.raises(InvalidInput, match="a token that the model does not know"):
        await pooling.encoded(place, ["film"], "inputs[{}]", truncate=False)
