"""One version of a model, on a fake engine and without a server: how it is loaded, answers, drains and ends."""

import asyncio

import pytest

from tuneserve import checkpoint
from tuneserve.errors import CheckpointError, StepFailed
from tuneserve.server.call import context
from tuneserve.server.call.errors import Unavailable, WrongState
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.config import ModelConfig
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.adapters import Store
from tuneserve.server.models.admission import Entry
from tuneserve.server.models.model import Model
from tuneserve.v1 import model_pb2

from ..troubled_engine import TroubledEngine

LOADING, READY, DRAINING, FAILED = (
    model_pb2.MODEL_STATE_LOADING,
    model_pb2.MODEL_STATE_READY,
    model_pb2.MODEL_STATE_DRAINING,
    model_pb2.MODEL_STATE_FAILED,
)


@pytest.fixture(autouse=True)
def call() -> context.Call:
    one = context.Call("req-1", "Classify", Tenant("acme", adapters=["mine"]), {}, Metrics())
    context.begin(one)
    return one


@pytest.fixture
def engine() -> TroubledEngine:
    return TroubledEngine(2)


@pytest.fixture
def start(engine):
    """What makes the engine, and may be given another one."""

    async def make(*_) -> TroubledEngine:
        return engine

    return make


@pytest.fixture(params=["bert"])
async def model(request, make_bert, make_llama):
    """A version that was not loaded yet."""
    kinds = {"bert": lambda: make_bert(), "llama": make_llama}
    directory = kinds[request.param]()
    checkpoint.seal(directory, checkpoint.describe(directory))
    one = Model("m", ModelConfig(path=directory, max_queue=3), checkpoint.load(directory), Metrics())
    yield one
    await one.close()


async def seen(model: Model, states: list[tuple[int, int]]) -> None:
    """Notes what who watches it is shown."""
    async for one in model.watch():
        states.append((one.state, one.load_step))


async def test_a_load_goes_through_its_steps_and_who_watches_sees_its_end(model, start, until):
    states: list[tuple[int, int]] = []
    watching = asyncio.create_task(seen(model, states))
    await until(lambda: states)
    assert model.to_proto().limits.max_length == 0, "not known yet"
    await model.load(start)
    assert not model.is_ready
    model.serve()
    await until(watching.done)
    assert states[0] == (LOADING, model_pb2.LOAD_STEP_STARTING)
    assert states[-1] == (READY, model_pb2.LOAD_STEP_UNSPECIFIED)
    assert model.is_ready
    assert model.id == f"m@{model.version}"
    described = model.to_proto()
    assert (described.limits.max_length, described.limits.max_queue) == (32, 3)
    assert list(described.labels) == ["neg", "pos"]


@pytest.mark.parametrize(("model", "slots"), [("bert", 8), ("llama", 4)], indirect=["model"])
async def test_one_real_request_goes_through_before_any_call(model, slots, engine, start):
    """And an engine that pools gets as much again, so that its next step is ready."""
    await model.load(start)
    [ticket] = engine.tickets
    assert ticket.request_id == "warm-up"
    assert (len(engine.pooled), len(engine.sampled)) == ((1, 0) if slots == 8 else (0, 1))
    asked = [asyncio.create_task(model.admission.wait(Entry(), 1, 1)) for _ in range(slots + 1)]
    await asyncio.sleep(0)
    assert (model.admission.running, model.admission.waiting) == (slots, 1)
    for one in asked:
        one.cancel()


@pytest.mark.parametrize("when", ["made", "started", "warmed up"])
async def test_what_fails_to_load_leaves_no_engine(model, engine, start, when):
    async def fails(*_) -> None:
        raise ValueError("no memory\nand much more")

    if when == "made":
        start = fails
    elif when == "started":
        engine.start = fails
    else:
        engine.broken = ValueError("no memory")
    with pytest.raises(ValueError if when == "warmed up" else StepFailed) as caught:
        await model.load(start)
    if when != "warmed up":
        assert str(caught.value) == "model m: the engine did not start: no memory"
        assert caught.value.hint == "its own log is above"
    assert engine.closed == engine.killed.is_set() == (when != "made")
    assert not model.load_failed
    model.failed("did not start")
    assert model.load_failed


async def test_an_engine_is_started_again_for_the_same_files_alone(model, start):
    await model.load(start)
    await model.runner.end_engine()

    async def another(*_) -> TroubledEngine:
        return TroubledEngine(2)

    await model.load(another)
    weights = model.config.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="content differs"):
        await model.load(another)


async def test_a_model_says_why_it_does_not_answer(model, start):
    with pytest.raises(Unavailable, match="'m' is loading"):
        model.check_ready()
    await model.load(start)
    model.serve()
    model.check_ready()
    model.failed("ran out of memory")
    with pytest.raises(Unavailable, match="'m': its engine ran out of memory"):
        model.check_ready()
    assert model.to_proto().failure == "its engine ran out of memory"
    model.show(model_pb2.MODEL_STATE_LOADING)
    assert model.to_proto().failure == "", "it is told in the state FAILED alone"
    model.show(model_pb2.MODEL_STATE_FAILED)
    assert not model.load_failed, "it did answer"
    model.serve()
    assert model.to_proto().failure == ""
    model.failed("")
    assert model.told == "model 'm': its engine died"


async def test_a_drain_waits_for_those_inside(model, start, until):
    await model.load(start)
    model.serve()
    with model.admission.enter(Entry()):
        assert not await model.drain(0)
        assert model.state == DRAINING
        draining = asyncio.create_task(model.drain(60))
        await asyncio.sleep(0)
        assert not draining.done()
    await until(draining.done)
    assert draining.result()


@pytest.mark.parametrize(("meanwhile", "after"), [(None, READY), ("died", FAILED)])
async def test_a_drain_that_is_given_up_leaves_it_as_it_was(model, start, meanwhile, after):
    await model.load(start)
    model.serve()
    with model.admission.enter(Entry()):
        draining = asyncio.create_task(model.drain(60))
        await asyncio.sleep(0)
        if meanwhile:
            model.failed(meanwhile)
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
    assert model.state == after


async def test_one_that_was_never_loaded_is_drained_at_once(model):
    assert await model.drain(0)


async def test_a_caller_is_told_of_the_adapters_that_it_may_use(model, call, start, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (tmp_path / "adapter_model.safetensors").write_text("w")
    store = Store()
    for name in ("theirs", "mine"):
        model.adapters.prepare(name, store.take(tmp_path, 8))
    await model.load(start)
    assert [one.name for one in model.to_proto().adapters] == ["mine"]
    assert model.adapters.get("mine").version == model.to_proto().adapters[0].version


async def test_a_model_without_room_for_adapters_takes_none(model, start):
    with pytest.raises(WrongState, match="takes no adapters: set max_adapters") as caught:
        model.check_takes_adapters()
    assert caught.value.reason == "NO_ADAPTERS"


async def test_an_answer_that_is_not_taken_apart_is_counted_and_said(model, call, caplog):
    model.unparsed("it took too long")
    assert call.metrics.registry.get_sample_value("tuneserve_answers_unparsed_total", {"model": "m"}) == 1
    assert caplog.messages == [f"model {model.id}: an answer was not parsed, and is returned as text: it took too long"]
