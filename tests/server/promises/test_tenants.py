"""Tenants can't see or use each other's: adapters, and what the engine keeps of prompts. Nor their turns in a queue."""

import asyncio
import json

import grpc
import numpy as np
import pytest
from safetensors.numpy import save_file

from tuneserve.oip import inference_pb2
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tuneserve.server.call.tenants import hashed
from tuneserve.server.config import ModelConfig
from tuneserve.server.text.constraints import Constraints
from tuneserve.v1 import classification_pb2, embedding_pb2, generation_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..conftest import loopback

TENANTS = {
    "acme": {"keys": [hashed("acme-key"), hashed("acme-other-key")], "adapters": ["acme-style", "both"]},
    "bolt": {"keys": [hashed("bolt-key")], "adapters": ["bolt-style", "both"]},
    "plain": {"keys": [hashed("plain-key")]},
    "none": {"keys": [hashed("none-key")], "adapters": []},
    "boss": {"keys": [hashed("boss-key")], "role": "admin"},
}
KNOWN = {
    "acme": ["acme-style", "both"],
    "bolt": ["bolt-style", "both"],
    "plain": ["common"],
    "none": [],
    "boss": ["acme-style", "bolt-style", "both", "common"],
}
ADAPTERS = KNOWN["boss"]
PROMPT = generation_pb2.Prompt(text="the film was")
SAMPLING = generation_pb2.SamplingParams(max_tokens=1)


def key(name: str) -> tuple[tuple[str, str]]:
    return (("x-api-key", f"{name}-key"),)


@pytest.fixture
async def server(serve_config, make_bert, make_llama, tmp_path):
    """A chat model with four adapters, of which two tenants list some."""
    for number, name in enumerate(ADAPTERS):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
        save_file({"a": np.full((2, 2), number, np.float32)}, tmp_path / name / "adapter_model.safetensors")
    (tmp_path / "tenants.yaml").write_text(json.dumps({"tenants": TENANTS}))
    adapters = {name: tmp_path / name for name in ADAPTERS}
    config = loopback(
        {
            "chat": ModelConfig(path=make_llama(), adapters=adapters, max_adapters=4),
            "sentiment": make_bert(),
            "vectors": make_bert("Model", []),
        },
        tenants=tmp_path / "tenants.yaml",
        drain_seconds=3,
    )
    async with serve_config(config) as served:
        for engine in served.engines.values():
            engine.tickets.clear()
        yield served


async def generate(channel, tenant: str, adapter: str) -> generation_pb2.GenerateResponse:
    request = generation_pb2.GenerateRequest(model="chat", prompt=PROMPT, sampling=SAMPLING, adapter=adapter)
    return await GenerationServiceStub(channel).Generate(request, metadata=key(tenant))


async def generate_stream(channel, tenant: str, adapter: str) -> generation_pb2.GenerateStreamResponse:
    request = generation_pb2.GenerateRequest(model="chat", prompt=PROMPT, sampling=SAMPLING, adapter=adapter)
    return await GenerationServiceStub(channel).GenerateStream(request, metadata=key(tenant)).read()


async def infer(channel, tenant: str, adapter: str) -> inference_pb2.ModelInferResponse:
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"the film"]}}
    request = inference_pb2.ModelInferRequest(model_name="chat", inputs=[tensor])
    request.parameters["adapter"].string_param = adapter
    return await GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=key(tenant))


@pytest.mark.parametrize("tenant", TENANTS)
async def test_a_tenant_is_told_of_the_adapters_it_may_use(server, tenant):
    stub = ModelServiceStub(server.channel)
    listed = await stub.ListModels(model_pb2.ListModelsRequest(), metadata=key(tenant))
    [chat] = [model for model in listed.models if model.name == "chat"]
    got = await stub.GetModel(model_pb2.GetModelRequest(model="chat"), metadata=key(tenant))
    for model in (chat, got.model):
        assert [one.name for one in model.adapters] == KNOWN[tenant]
    hidden = set(ADAPTERS) - set(KNOWN[tenant])
    text = f"{listed} {got}"
    assert not [name for name in hidden if name in text]


@pytest.mark.parametrize("ask", [generate, generate_stream, infer])
@pytest.mark.parametrize("tenant", TENANTS)
async def test_a_tenant_uses_its_own_adapters_and_others_do_not_exist(server, refused, tenant, ask):
    told = set()
    for adapter in (*ADAPTERS, "unknown"):
        engine = server.engines["chat"]
        engine.tickets.clear()
        if adapter in KNOWN[tenant]:
            assert await ask(server.channel, tenant, adapter)
            assert engine.tickets[0].adapter
            continue
        error = await refused(ask(server.channel, tenant, adapter), grpc.StatusCode.NOT_FOUND)
        assert not engine.tickets
        told.add(error.details().partition(" (request")[0].replace(adapter, "NAME"))
    # The same for another's as for one that is nowhere.
    assert told == {f"adapter 'NAME' is not served here; served: {', '.join(KNOWN[tenant]) or 'none'}"}


async def test_without_tenants_every_adapter_is_everybodys(server):
    listed = await ModelServiceStub(server.admin).GetModel(model_pb2.GetModelRequest(model="chat"))
    assert [one.name for one in listed.model.adapters] == ADAPTERS


async def test_what_the_engine_caches_is_each_tenants_own(server):
    """The prefix cache of vLLM finds a prompt for those of the same salt alone."""
    tenants = ["acme", "acme-other", "bolt", "plain"]
    for tenant in tenants:
        metadata = key(tenant)
        await generate(server.channel, tenant, "")
        await generate_stream(server.channel, tenant, "")
        await infer(server.channel, tenant, "")
        one = classification_pb2.ClassifyInput(text="the film was good")
        classify = classification_pb2.ClassifyRequest(model="sentiment", inputs=[one])
        await ClassificationServiceStub(server.channel).Classify(classify, metadata=metadata)
        embed = embedding_pb2.EmbedRequest(model="vectors", texts=["good"])
        await EmbeddingServiceStub(server.channel).Embed(embed, metadata=metadata)
    for engine in server.engines.values():
        salts = [ticket.salt for ticket in engine.tickets]
        each = len(salts) // len(tenants)
        by_key = [set(salts[index * each : (index + 1) * each]) for index in range(len(tenants))]
        assert all(len(one) == 1 for one in by_key)
        assert by_key[0] == by_key[1], "two keys of one tenant"
        assert len({salt for one in by_key for salt in one}) == len(TENANTS) - 2
        assert "" not in salts


async def test_what_is_known_of_a_constraint_is_each_tenants_own(server, refused, monkeypatch):
    """A check takes tens of milliseconds: an answer without one would tell that somebody sent the same schema."""
    checked, check = [], Constraints._check

    async def counted(self, params, content):
        checked.append(params)
        return await check(self, params, content)

    monkeypatch.setattr(Constraints, "_check", counted)
    good = generation_pb2.SamplingParams(max_tokens=1, structured_output={"json_schema": '{"enum": ["acme 17"]}'})
    bad = generation_pb2.SamplingParams(max_tokens=1, structured_output={"regex": "(acme 17"})
    tool = generation_pb2.ToolChoice(mode=generation_pb2.TOOL_CHOICE_MODE_REQUIRED)
    chat = generation_pb2.Chat(messages=[{"role": "user", "content": "a"}], tools=[{"name": "acme"}], tool_choice=tool)
    stub = GenerationServiceStub(server.channel)
    for tenant, times in (("acme", 1), ("acme-other", 0), ("bolt", 1), ("plain", 1), ("bolt", 0)):
        before = len(checked)
        ask = generation_pb2.GenerateRequest(model="chat", prompt=PROMPT, sampling=good)
        assert (await stub.Generate(ask, metadata=key(tenant))).completions
        ask = generation_pb2.GenerateRequest(model="chat", prompt={"chat": chat}, sampling=SAMPLING)
        assert (await stub.Generate(ask, metadata=key(tenant))).completions
        ask = generation_pb2.GenerateRequest(model="chat", prompt=PROMPT, sampling=bad)
        await refused(stub.Generate(ask, metadata=key(tenant)), grpc.StatusCode.INVALID_ARGUMENT)
        assert len(checked) == before + 3 * times, tenant


async def test_a_tenant_that_fills_the_queue_is_in_nobody_elses_way(serve_config, make_bert, tmp_path, until):
    (tmp_path / "tenants.yaml").write_text(json.dumps({"tenants": TENANTS}))
    model = ModelConfig(path=make_bert(), max_num_seqs=1, max_queue=16)
    config = loopback({"sentiment": model}, tenants=tmp_path / "tenants.yaml", drain_seconds=5)

    def slow(name, engine):
        engine.delay = 0.1

    request = classification_pb2.ClassifyRequest(
        model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")]
    )
    async with serve_config(config, slow) as served:
        [found] = served.app.models
        classify = ClassificationServiceStub(served.channel).Classify
        greedy = [asyncio.ensure_future(classify(request, metadata=key("acme"))) for _ in range(16)]
        await until(lambda: found.admission.waiting == 14)
        for _ in range(3):
            assert (await classify(request, metadata=key("bolt"))).results
        # Two run at a time, and each of the other's waits for one turn of theirs at most.
        assert sum(one.done() for one in greedy) <= 10
        assert all(answer.results for answer in await asyncio.gather(*greedy))
