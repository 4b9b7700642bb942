"""A call's way through a model to its engine: the queue's place, what it is charged, and what of it is measured."""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from tuneserve.server.call import context
from tuneserve.server.call.errors import DeadlinePassed, InvalidInput, NotFound, Overloaded, Unavailable
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.engine.interface import Delta, Encoded, EngineFailed, Sampling
from tuneserve.server.metrics import Metrics
from tuneserve.server.models.place import admitted
from tuneserve.server.text.redaction import Redactor
from tuneserve.v1 import classification_pb2, model_pb2

REQUEST = classification_pb2.ClassifyRequest(inputs=[classification_pb2.ClassifyInput(text="Write to a@b.org")])
INPUTS = [Encoded([2, 9, 3]), Encoded([2, 9, 9, 3])]


@pytest.fixture
def models(served):
    return {model.name: model for model in served.app.models}


@pytest.fixture
def chat(models):
    return models["chat"]


@pytest.fixture
def charged() -> list[int]:
    return []


@pytest.fixture
def call(charged) -> context.Call:
    return context.Call("req-1", "Classify", Tenant("acme", priority=3), {}, Metrics(), charge=charged.append)


def sample(call: context.Call, name: str, model: str) -> float:
    return call.metrics.registry.get_sample_value(name, {"model": model}) or 0


async def made(model, tokens: int = 3, n: int = 1, **options) -> list[Delta]:
    async with admitted(model, REQUEST) as (place, _):
        options = {"stream": True, **options}
        return [one async for one in place.generate([5, 6], Sampling(max_tokens=tokens, n=n), **options)]


async def test_nobody_gets_in_with_personal_data_that_the_model_masks(models, call, monkeypatch):
    context.begin(call)
    async with admitted(models["sentiment"], REQUEST) as (_, seen):
        assert seen.request is REQUEST
    assert call.stages == []
    masking = models["sentiment"].config.model_copy(update={"redact": ("email",)})
    monkeypatch.setattr(models["sentiment"], "config", masking)
    monkeypatch.setattr(models["sentiment"].runner, "_redactor", Redactor(["email"]))
    async with admitted(models["sentiment"], REQUEST) as (_, seen):
        assert seen.request.inputs[0].text == "Write to [EMAIL]"
    assert call.stage_ns.keys() == {"tokenize"}
    with pytest.raises(InvalidInput, match=r"^labels"):
        async with admitted(models["sentiment"], classification_pb2.ClassifyRequest(labels=["a@b.org"])):
            raise AssertionError
    assert models["sentiment"].admission.calls == 0


async def test_tokens_are_held_against_their_caller_as_they_are_made(models, call):
    context.begin(call)
    held: list[int] = []
    call.hold = held.append
    async with admitted(models["sentiment"], REQUEST) as (place, _):
        [tokens] = await place.encode(["the film was good"])
    assert sum(held) == 48 * tokens.length
    assert call.stage_ns.keys() == {"tokenize"}


@pytest.mark.parametrize(("own", "asked", "given"), [(3, 1, 3), (3, 5, 5), (-2, 0, 0), (-2, -5, -2)])
async def test_a_call_cannot_raise_its_priority_above_its_keys(models, call, own, asked, given):
    context.begin(replace(call, tenant=Tenant("acme", priority=own)))
    async with admitted(models["sentiment"], REQUEST, asked) as (place, _):
        assert place.priority == given


async def test_inputs_are_pooled_and_paid_for(models, served, call, charged):
    context.begin(call)
    model = models["sentiment"]
    async with admitted(model, REQUEST, priority=1) as (place, _):
        assert place.priority == 3, "in the queue, too"
        assert model.admission.calls == 1
        assert sample(call, "tuneserve_queue_depth", "sentiment") == 1
        rows = await place.pool(INPUTS, "classify")
    assert len(rows) == 2
    assert served.engines["sentiment"].pooled == INPUTS
    assert served.engines["sentiment"].tickets[-1].priority >> 16 == 3, "no better than its key's"
    assert (charged, call.prompt_tokens, call.completion_tokens) == ([7], 7, 0)
    assert sample(call, "tuneserve_prompt_tokens_total", "sentiment") == 7
    assert sample(call, "tuneserve_queue_wait_seconds_count", "sentiment") == 1
    assert sample(call, "tuneserve_queue_depth", "sentiment") == 0
    assert {"queue", "engine"} <= call.stage_ns.keys()
    assert (model.admission.calls, model.admission.running) == (0, 0)


async def test_requests_that_are_answered_together_have_a_place_each(models, call):
    call.requests = 3
    context.begin(call)
    async with admitted(models["topics"], REQUEST):
        assert models["topics"].admission.calls == 3
        assert sample(call, "tuneserve_queue_depth", "topics") == 3
    assert models["topics"].admission.calls == 0
    assert sample(call, "tuneserve_queue_depth", "topics") == 0


async def test_what_a_call_reads_adds_up(models, chat, call):
    context.begin(call)
    async with admitted(models["sentiment"], REQUEST) as (place, _):
        rows = await place.pool([Encoded([2, 9, 3]), Encoded([2, 3])], "classify")
        await place.pool([Encoded([2, 3])], "classify")
    assert [row.tolist() for row in rows] == [[0.0, 2.0], [2.0, 0.0]]
    assert place.prompt_tokens == call.prompt_tokens == 7
    async with admitted(chat, REQUEST) as (place, _):
        async for _ in place.generate([5, 6], Sampling(max_tokens=1), stream=False, cost=11):
            pass
    assert place.prompt_tokens == 11


async def test_a_large_batch_has_many_turns(models, served, call, charged):
    context.begin(call)
    model, engine = models["sentiment"], served.engines["sentiment"]
    inputs = [Encoded([2] * (1 + index % 5)) for index in range(200)]
    engine.tickets.clear()
    async with admitted(model, REQUEST) as (place, _):
        rows = await place.pool(inputs, "classify")
    assert [row.argmax() for row in rows] == [len(one.token_ids) % 2 for one in inputs], "in their order"
    assert len(engine.tickets) == 4
    assert sum(charged) == sum(len(one.token_ids) for one in inputs)
    assert sample(call, "tuneserve_queue_wait_seconds_count", "sentiment") == 4
    engine.tickets.clear()
    async with admitted(model, REQUEST) as (place, _):
        await place.pool([Encoded([2] * 1000)] * 12, "classify")
    assert len(engine.tickets) == 3, "of long texts, fewer"


async def test_each_completion_has_a_turn_of_its_own(chat, served, call, charged):
    context.begin(call)
    engine = served.engines["chat"]
    engine.tickets.clear()
    engine.sampled.clear()
    async with admitted(chat, REQUEST) as (place, _):
        asked = Sampling(max_tokens=2, n=9, seed=7, prompt_logprobs=1)
        outputs = [one async for one in place.generate([5, 6], asked, stream=False)]
    assert sorted(delta.index for delta in outputs) == list(range(9))
    assert [(one.n, one.seed, one.prompt_logprobs) for one in engine.sampled[:2]] == [(1, 7, 1), (1, 8, None)]
    assert sorted(one.seed for one in engine.sampled) == list(range(7, 16))
    assert sum(charged) == 2 + 8 * 2 + 9 * 2, "less than a block of the cache is read again by each"
    assert sample(call, "tuneserve_queue_wait_seconds_count", "chat") == 9
    assert (chat.admission.running, chat.admission.waiting_tokens) == (0, 0)


async def test_the_first_completion_reads_the_prompt_for_all(chat, served, call, charged, until):
    context.begin(call)
    engine, prompt = served.engines["chat"], [5] * 21
    engine.delay = 0.2
    engine.tickets.clear()
    async with admitted(chat, REQUEST) as (place, _):
        outputs = place.generate(prompt, Sampling(max_tokens=2, n=5), stream=True)
        first = asyncio.create_task(anext(outputs))
        await until(lambda: engine.tickets)
        await asyncio.sleep(engine.delay / 4)
        assert len(engine.tickets) == 1, "others would read it, too"
        assert (await first).index == 0
        assert {one.index async for one in outputs} == set(range(5))
    assert sum(charged) == 21 + 4 * 5 + 5 * 2, "the cache holds two blocks of eight"


async def test_of_long_prompts_few_are_read_at_a_time(chat, served, call, until, monkeypatch):
    """A short one does not wait for them, nor does a long one for the answer of another."""
    context.begin(call)
    engine = served.engines["chat"]
    monkeypatch.setattr(engine, "long_prompt", 20)
    engine.delay = 0.1
    engine.tickets.clear()

    async def ask(place, length: int, stream: bool) -> None:
        async for _ in place.generate([5] * length, Sampling(max_tokens=3), stream):
            pass

    async with admitted(chat, REQUEST) as (place, _), asyncio.TaskGroup() as group:
        for stream in (True, False, True):
            group.create_task(ask(place, 21, stream))
        await until(lambda: chat.admission.waiting == 1)
        assert engine.running == 2
        group.create_task(ask(place, 20, True))
        await until(lambda: engine.running == 3)
        await until(lambda: len(engine.tickets) == 4)
        assert [one.read is not None for one in engine.tickets] == [True, True, False, True]
    assert (chat.admission.running, chat.admission._long.used) == (0, 0)


def fails(*_: object) -> None:
    """In place of a broken engine, which the server would restart for all tests."""
    raise EngineFailed("canary-of-a-prompt")


async def test_a_completion_that_fails_ends_the_others(chat, served, call, monkeypatch):
    context.begin(call)
    monkeypatch.setattr(served.engines["chat"], "writes", fails)
    with pytest.raises(EngineFailed):
        await made(chat, n=3)
    assert (chat.admission.running, chat.admission.calls, served.engines["chat"].running) == (0, 0, 0)


async def test_a_callers_next_sequences_go_behind_the_first_ones_of_others(chat, served, call):
    """In the engine, too, which knows priorities alone."""
    context.begin(call)
    engine = served.engines["chat"]
    engine.tickets.clear()
    async with admitted(chat, REQUEST) as (place, _):
        streams = [place.generate([5, 6], Sampling(max_tokens=9), stream=True) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        ranks = [ticket.priority for ticket in engine.tickets]
        assert ranks == [3 << 16, (3 << 16) + 1, (3 << 16) + 2]
        for stream in streams:
            await stream.aclose()


async def test_tokens_are_paid_for_as_they_are_written(chat, call, charged):
    context.begin(call)
    outputs = await made(chat)
    assert [delta.text for delta in outputs] == ["ab"] * 3
    assert charged == [2, 1, 1, 1]
    assert (call.prompt_tokens, call.completion_tokens) == (2, 3)
    assert sample(call, "tuneserve_completion_tokens_total", "chat") == 3
    assert sample(call, "tuneserve_time_to_first_token_seconds_count", "chat") == 1
    assert sample(call, "tuneserve_inter_token_seconds_count", "chat") == 2


async def test_what_comes_at_once_has_no_first_token(chat, call):
    context.begin(call)
    await made(chat, stream=False)
    assert call.completion_tokens == 3
    assert sample(call, "tuneserve_time_to_first_token_seconds_count", "chat") == 0


async def test_a_cost_stands_for_all_of_it(chat, call, charged):
    context.begin(call)
    await made(chat, cost=11)
    assert sum(charged) == 11
    assert (call.prompt_tokens, call.completion_tokens) == (11, 0)


async def test_leaving_early_frees_the_place(chat, served, call):
    context.begin(call)
    async with admitted(chat, REQUEST) as (place, _):
        outputs = place.generate([5, 6], Sampling(max_tokens=9), stream=True)
        await anext(outputs)
        assert chat.admission.running == 1
        await outputs.aclose()
        assert (chat.admission.running, served.engines["chat"].running) == (0, 0)
    assert (chat.admission.calls, call.completion_tokens) == (0, 1)


async def test_an_adapter_is_known_or_the_call_ends_before_the_engine(chat, served, call, charged):
    context.begin(call)
    with pytest.raises(NotFound):
        await made(chat, adapter="absent")
    assert served.engines["chat"].tickets == []
    assert charged == []


async def test_a_call_too_many_is_turned_away_at_once(chat, call):
    context.begin(call)
    async with AsyncExitStack() as held:
        for _ in range(4):
            await held.enter_async_context(admitted(chat, REQUEST))
        with pytest.raises(Overloaded) as caught:
            await made(chat)
    assert caught.value.reason == "QUEUE_FULL"
    assert len(await made(chat)) == 3


@pytest.mark.parametrize("state", [model_pb2.MODEL_STATE_LOADING, model_pb2.MODEL_STATE_DRAINING])
async def test_a_model_that_does_not_answer_takes_nobody(chat, call, monkeypatch, state):
    context.begin(call)
    monkeypatch.setattr(chat, "state", state)
    with pytest.raises(Unavailable):
        await made(chat)
    assert chat.admission.calls == 0


async def test_what_is_too_late_never_reaches_the_engine(models, served, call, charged):
    context.begin(call)
    call.deadline = time.monotonic() - 1
    async with admitted(models["sentiment"], REQUEST) as (place, _):
        with pytest.raises(DeadlinePassed):
            await place.pool(INPUTS, "classify")
    assert served.engines["sentiment"].tickets == []
    assert charged == []


async def test_of_a_dead_engine_callers_are_told_what_befell_it(models, served, call, monkeypatch):
    context.begin(call)
    monkeypatch.setattr(models["sentiment"], "failure", "ran out of memory")
    monkeypatch.setattr(served.engines["sentiment"], "pool", fails)
    async with admitted(models["sentiment"], REQUEST) as (place, _):
        with pytest.raises(EngineFailed) as caught:
            await place.pool(INPUTS, "classify")
    assert caught.value.told == "model 'sentiment': its engine ran out of memory"


async def test_a_call_that_is_cancelled_leaves_its_place(models, served, call, until):
    context.begin(call)
    model, engine = models["sentiment"], served.engines["sentiment"]
    engine.delay = 30

    async def ask() -> None:
        async with admitted(model, REQUEST) as (place, _):
            await place.pool(INPUTS, "classify")

    task = asyncio.create_task(ask())
    await until(lambda: engine.running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (engine.running, model.admission.running, model.admission.calls) == (0, 0, 0)
