"""An Open Inference request of many prompts is one call: one version answers it, in one place of the queue, and it
ends whole. On a stream, each request fails alone.
"""

import asyncio

import grpc
import numpy as np
import pytest

from tuneserve.oip import inference_pb2 as pb
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tuneserve.server.config import ModelConfig
from tuneserve.server.models.aliases import Route

from ..conftest import loopback

PROMPTS = 32
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
async def server(serve_config, make_bert, make_llama):
    """Two chat models, which take one call and run two sequences at a time, and two classifiers."""
    chat = {"max_queue": 1, "max_num_seqs": 2}
    config = loopback(
        {
            "one": ModelConfig(path=make_llama(), **chat),
            "two": ModelConfig(path=make_llama(), **chat),
            "sentiment": make_bert(),
            "mood": ModelConfig(path=make_bert(), max_inputs=2),
        },
        drain_seconds=20,
    )
    async with serve_config(config) as served:
        for alias, names in (("chat", ("one", "two")), ("labels", ("sentiment", "mood"))):
            targets = [(served.app.models.latest(name), 1) for name in names]
            served.app.models.set_route(alias, Route(targets))
        for engine in served.engines.values():
            engine.tickets.clear()
        yield served


def request(model: str, name: str, *texts: str, **parameters: object) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model)
    tensor = message.inputs.add(name=name, datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    for key, value in parameters.items():
        kind = {int: "int64_param", str: "string_param", bool: "bool_param", float: "double_param"}[type(value)]
        setattr(message.parameters[key], kind, value)
    return message


def batch(model: str = "chat", **parameters: object) -> pb.ModelInferRequest:
    return request(model, "text_input", *["the film"] * PROMPTS, max_tokens=2, **parameters)


def stub(server) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(server.channel)


async def test_all_prompts_of_a_batch_are_answered_by_one_version_in_one_place(server):
    chosen = set()
    for _ in range(12):
        answer = await stub(server).ModelInfer(batch())
        assert answer.outputs[0].shape == [PROMPTS]
        tickets = {name: len(server.engines[name].tickets) for name in ("one", "two")}
        assert sorted(tickets.values()) == [0, PROMPTS], tickets
        [name] = [name for name, count in tickets.items() if count]
        assert answer.model_version == server.app.models.latest(name).version
        chosen.add(name)
        server.engines[name].tickets.clear()
    assert chosen == {"one", "two"}


async def test_what_is_checked_is_of_the_version_that_answers(server):
    """One of the two takes two texts: either it refuses three, or the other one answers."""
    codes = set()
    for _ in range(24):
        call = stub(server).ModelInfer(request("labels", "text", "good", "bad", "good"))
        codes.add(await call.code())
        assert not server.engines["mood"].tickets
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


async def test_a_batch_that_runs_when_the_server_is_told_to_stop_is_answered_whole(server, until):
    server.engines["one"].delay = 0.02
    call = stub(server).ModelInfer(batch("one"))
    await until(lambda: server.engines["one"].tickets)
    stopping = asyncio.create_task(server.app.stop())
    answer = await call
    assert answer.outputs[0].shape == [PROMPTS]
    assert len(server.engines["one"].tickets) == PROMPTS
    await stopping


async def test_a_timeout_ends_the_wait_itself(server, refused, until):
    [model] = [model for model in server.app.models if model.name == "sentiment"]
    engine = server.engines["sentiment"]
    engine.delay = 600
    slots = model.admission._sequences.size
    holders = [stub(server).ModelInfer(request("sentiment", "text", "good")) for _ in range(slots)]
    await until(lambda: model.admission.running == slots)
    late = stub(server).ModelInfer(request("sentiment", "text", "bad", timeout=50_000))
    error = await refused(late, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert "while the call waited" in error.details()
    on_stream = stub(server).ModelStreamInfer(iter([request("sentiment", "text", "bad", timeout=50_000)]))
    assert "while the call waited" in (await on_stream.read()).error_message
    assert (model.admission.calls, model.admission.waiting_tokens) == (len(holders), 0)
    for holder in holders:
        holder.cancel()
    await until(lambda: not model.admission.calls)
    assert len(engine.tickets) == len(holders)


@pytest.mark.parametrize("value", [-1, "soon", 0.5, True])
async def test_a_timeout_that_is_no_time_is_refused(server, refused, value):
    error = await refused(stub(server).ModelInfer(batch(timeout=value)), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("parameters.timeout: ")


async def test_a_request_that_breaks_a_model_ends_no_stream(server):
    engine = server.engines["sentiment"]
    pool = engine.pool

    async def broken(ticket, inputs, task):
        rows = await pool(ticket, inputs, task)
        return [row * np.nan if len(one.token_ids) > 10 else row for one, row in zip(inputs, rows, strict=True)]

    engine.pool = broken
    texts = ["good", "bad " * 20, "good film", "bad"]
    requests = [request("sentiment", "text", text) for text in texts]
    for index, one in enumerate(requests):
        one.id = str(index)
    answers = {one.infer_response.id: one async for one in stub(server).ModelStreamInfer(iter(requests))}
    assert sorted(answers) == ["0", "1", "2", "3"]
    assert [bool(answers[id_].error_message) for id_ in sorted(answers)] == [False, True, False, False]
    assert answers["1"].error_message.startswith("internal error; ")
    assert answers["1"].infer_response.parameters["triton_final_response"].bool_param


async def test_prompts_that_an_answer_would_repeat_too_often_are_refused(server, refused):
    """Six hundred thousand characters, 128 times over."""
    long = request("one", "text_input", *["good " * 10_000] * 4, n=128, max_tokens=1)
    long.inputs[0].contents.bytes_contents.extend([b"good " * 20_000] * 4)
    long.inputs[0].shape[0] = 8
    error = await refused(stub(server).ModelInfer(long), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("inputs[0] (text_input): would be 76800000 characters in the answer")
    assert not server.engines["one"].tickets


def large(kind: str) -> pb.ModelInferRequest:
    if kind == "sampling_parameters":
        message = batch("one")
        tensor = message.inputs.add(name=kind, datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b'{"stop_token_ids": [' + b"1," * (1 << 20) + b"1]}")
        return message
    if kind == "parameters":
        message = batch("one")
        for index in range(5_000):
            message.parameters[f"key {index}"].bool_param = True
        return message
    return batch("one", structured_outputs='{"regex": "' + "a" * (3 << 20) + '"}')


@pytest.mark.parametrize("kind", ["sampling_parameters", "parameters", "structured_outputs"])
async def test_megabytes_of_options_hold_nobody_up(server, soon, send, kind):
    message = large(kind).SerializeToString()
    code, details = await soon(lambda: send(server.app.address, INFER, [message]))
    assert code == grpc.StatusCode.INVALID_ARGUMENT, details
    assert "allowed: " in details
    assert kind in details
