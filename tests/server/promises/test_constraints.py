"""A constraint costs bounded time, in a process of its own: neighbours, keys and the event loop don't notice."""

import asyncio
import contextlib
import json
import threading
import time

import grpc
import psutil
import pytest

from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.call.tenants import hashed
from tuneserve.server.text.constraints import Constraints
from tuneserve.server.turns import belongs_to
from tuneserve.v1 import generation_pb2 as pb
from tuneserve.v1 import model_pb2
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..conftest import loopback

GOOD = pb.StructuredOutput(json_schema='{"type": "object", "properties": {"a": {"enum": ["the film"]}}}')
# Many seconds of Python's `re`, under the interpreter's lock.
LONG = pb.StructuredOutput(regex="(?i)" + "[a-\uffff]" * 3600)
HARD = {
    "long": (LONG, "takes too much time or memory"),
    "a billion items": (pb.StructuredOutput(json_schema='{"type": "array", "maxItems": 1000000000}'), "time or memory"),
    "doubling rules": (
        pb.StructuredOutput(grammar="\n".join(["root ::= a0", *(f"a{i} ::= a{i + 1} a{i + 1}" for i in range(40))])),
        "can't be read",
    ),
}


def request(form: pb.StructuredOutput) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(max_tokens=2, structured_output=form)
    return pb.GenerateRequest(model="chat", prompt=pb.Prompt(text="the film"), sampling=sampling)


@pytest.mark.parametrize(("form", "reason"), HARD.values(), ids=HARD)
async def test_what_takes_long_is_refused_and_what_follows_is_not(served, refused, form, reason):
    stub = GenerationServiceStub(served.channel)
    before, sampled = time.thread_time(), len(served.engines["chat"].sampled)
    error = await refused(stub.Generate(request(form), timeout=120), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("sampling.structured_output.")
    assert reason in error.details()
    # On this thread, which has the event loop of server and client.
    assert time.thread_time() - before < 1
    assert len(served.engines["chat"].sampled) == sampled
    assert (await stub.Generate(request(GOOD), timeout=120)).completions


async def test_neighbours_are_answered_meanwhile(served, refused):
    stub = GenerationServiceStub(served.channel)
    # One that nobody has asked for yet.
    form = pb.StructuredOutput(regex=LONG.regex + "|another")
    long = asyncio.ensure_future(stub.Generate(request(form), timeout=120))
    plain = pb.GenerateRequest(model="chat", prompt=pb.Prompt(text="the"), sampling=pb.SamplingParams(max_tokens=2))
    for _ in range(20):
        assert (await stub.Generate(plain, timeout=60)).completions
    assert not long.done()
    await refused(long, grpc.StatusCode.INVALID_ARGUMENT)


def checkers() -> list[psutil.Process]:
    """The processes of this one that check constraints."""
    return [one for one in psutil.Process().children() if "tuneserve.server.text.constraint_process" in one.cmdline()]


async def test_a_constraint_is_checked_once(served):
    stub = GenerationServiceStub(served.channel)
    once = pb.StructuredOutput(regex="once")
    assert (await stub.Generate(request(once), timeout=120)).completions
    stopped = checkers()
    assert stopped
    for process in stopped:
        process.suspend()
    try:
        assert (await stub.Generate(request(once), timeout=60)).completions
    finally:
        for process in stopped:
            process.resume()


def checking() -> list[psutil.Process]:
    """Their copies, which check one constraint each."""
    return [copy for process in checkers() for copy in process.children()]


async def test_a_check_ends_with_its_call(served, until):
    stub = GenerationServiceStub(served.channel)
    assert (await stub.Generate(request(pb.StructuredOutput(regex="before")), timeout=120)).completions
    [process] = checkers()
    call = stub.Generate(request(pb.StructuredOutput(regex=LONG.regex + "|cancelled")), timeout=120)
    await until(lambda: any(copy.cpu_times().user > 0.1 for copy in checking()))
    call.cancel()
    await until(lambda: not checking())
    assert (await stub.Generate(request(pb.StructuredOutput(regex="behind")), timeout=120)).completions
    assert checkers() == [process], "nobody waits for another to start"


async def test_checks_end_with_the_process_that_asked_for_them(served, until):
    [model] = [one for one in served.app.models if one.name == "chat"]
    constraints = Constraints(model.tokenizer.text, model.tokenizer.size, None)
    asking = asyncio.create_task(constraints.checked(pb.StructuredOutput(regex=LONG.regex + "|orphan")))
    await until(checking)
    asking.cancel()
    await constraints.close()
    await until(lambda: not checking())


async def test_a_process_that_somebody_ended_is_started_again(served):
    stub = GenerationServiceStub(served.channel)
    assert (await stub.Generate(request(pb.StructuredOutput(regex="first")), timeout=120)).completions
    [process] = checkers()
    process.kill()
    assert (await stub.Generate(request(pb.StructuredOutput(regex="second")), timeout=120)).completions


def chain(number: int) -> pb.StructuredOutput:
    """A grammar that takes seconds."""
    rules = [f"r{rule} ::= r{rule + 1} | r{rule + 1} r{rule + 1}" for rule in range(1000)]
    return pb.StructuredOutput(grammar="\n".join(["root ::= r0", *rules, f'r1000 ::= "x{number}"']))


async def check(model, caller: str, form: pb.StructuredOutput) -> None:
    belongs_to(caller)
    with contextlib.suppress(InvalidInput):
        await model.constraints.checked(form)


async def test_a_callers_long_checks_are_in_nobody_elses_way(served):
    """Ten that take seconds each wait, and another caller's for none of them, nor for what is left of one."""
    [model] = [one for one in served.app.models if one.name == "chat"]
    await check(model, "other", pb.StructuredOutput(regex="the process runs"))
    greedy = [asyncio.create_task(check(model, "greedy", chain(number))) for number in range(10)]
    await asyncio.sleep(0.5)
    for number in range(20):
        await asyncio.create_task(check(model, "other", pb.StructuredOutput(regex=f"other {number}")))
    assert not any(task.done() for task in greedy[1:])
    for task in greedy:
        task.cancel()
    await asyncio.wait(greedy)


async def test_long_checks_of_several_callers_wait_for_each_other_only(served):
    [model] = [one for one in served.app.models if one.name == "chat"]
    await check(model, "other", pb.StructuredOutput(regex="the process still runs"))
    greedy = [asyncio.create_task(check(model, f"greedy {number}", chain(100 + number))) for number in range(4)]
    # Two of them have been given up, at least.
    await asyncio.sleep(1)
    for number in range(10):
        await asyncio.create_task(check(model, "other", pb.StructuredOutput(regex=f"another {number}")))
        assert len(checking()) <= 3
    assert sum(task.done() for task in greedy) < 3
    await asyncio.gather(*greedy)


async def test_a_key_is_taken_away_while_every_thread_is_busy(serve_config, make_llama, tmp_path, refused):
    file = tmp_path / "tenants.yaml"
    file.write_text(json.dumps({"tenants": {"one": {"keys": [hashed("key")]}, "two": {"keys": [hashed("other")]}}}))
    config = loopback({"chat": make_llama()}, tenants=file, drain_seconds=2)
    release = threading.Event()
    async with serve_config(config) as served:
        list_models = ModelServiceStub(served.channel).ListModels
        metadata = (("x-api-key", "key"),)
        assert (await list_models(model_pb2.ListModelsRequest(), metadata=metadata)).models
        busy = [asyncio.get_running_loop().run_in_executor(None, release.wait) for _ in range(100)]
        try:
            file.write_text(json.dumps({"tenants": {"two": {"keys": [hashed("other")]}}}))
            code = grpc.StatusCode.OK
            for _ in range(200):
                await asyncio.sleep(0.05)
                call = list_models(model_pb2.ListModelsRequest(), metadata=metadata)
                if (code := await call.code()) != grpc.StatusCode.OK:
                    break
            assert code == grpc.StatusCode.UNAUTHENTICATED
        finally:
            release.set()
            await asyncio.gather(*busy)
