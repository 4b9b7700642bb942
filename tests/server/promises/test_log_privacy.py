"""Hygiene: what callers send, their keys and the server's paths are in no status, log line or metric.

A canary stands in every text, key and path; every rpc is driven into its answers and its refusals, with engines
that work and with engines that break in the canary's name. The engines' own logs are not ours, and not here.
"""

import asyncio
import contextlib
import gc
import logging
import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message

from tuneserve.oip import inference_pb2 as oip
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tuneserve.server.call.tenants import hashed
from tuneserve.server.config import FeedbackConfig, IndexConfig, ModelConfig, MonitorConfig
from tuneserve.server.engine.interface import EngineFailed, RequestRefused
from tuneserve.server.models import memory
from tuneserve.v1 import (
    answer_pb2,
    classification_pb2,
    embedding_pb2,
    feedback_pb2,
    generation_pb2,
    model_admin_pb2,
    model_pb2,
    monitor_pb2,
)
from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.feedback_pb2_grpc import FeedbackServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.monitor_pb2_grpc import MonitorServiceStub

from ..conftest import Models, loopback

CANARY = "cAnArY"
KEY = f"tsk_{CANARY}_0123456789"
NER_LABELS = ["O", "B-PER", "I-PER"]


class Ear(logging.Handler):
    """Hears every record of every logger, and keeps all that is in it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.heard: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(f"{self.format(record)} {record.args} {record.exc_info}")


@pytest.fixture
def ear() -> Iterator[Ear]:
    ear, known = Ear(), [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    loggers = [logging.root, *(logger for logger in known if not logger.propagate)]
    # Libraries that read files name them where they are asked for more than their warnings.
    ours = [logger for logger in known if logger.name.startswith(("tuneserve", "grpc", "asyncio"))]
    levels = [(logger, logger.level) for logger in (logging.root, *ours)]
    for logger, _ in levels:
        logger.setLevel(logging.DEBUG)
    for logger in loggers:
        logger.addHandler(ear)
    yield ear
    for logger in loggers:
        logger.removeHandler(ear)
    for logger, level in levels:
        logger.setLevel(level)


@pytest.fixture
async def server(serve_config, make_bert, make_llama, tmp_path, monkeypatch):
    """Every kind of model, in directories of the canary's name, for callers with keys."""
    monkeypatch.setattr(memory, "check", lambda *_: None)
    root = tmp_path / f"root-{CANARY}"
    root.mkdir()

    def named(name: str, directory):
        return directory.rename(root / f"{CANARY}-{name}")

    for name, settings in {
        "polite": '{"peft_type": "LORA", "r": 4}',
        "large": '{"peft_type": "LORA", "r": 900}',
    }.items():
        folder = root / f"{CANARY}-{name}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(settings)
        (folder / "adapter_model.safetensors").write_bytes(b"any")
    (root / f"{CANARY}-empty").mkdir()
    (root / f"{CANARY}-broken").mkdir()
    (root / f"{CANARY}-broken" / "config.json").write_text(f'{{"model_type": "{CANARY}')
    named("spare", make_bert(labels=["neg", "pos", "mixed"]))
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(
        f"tenants:\n  admin: {{keys: ['{hashed(KEY)}'], role: admin}}\n"
        f"  small: {{keys: ['{hashed(KEY + 's')}'], models: [ner], requests_per_second: 1}}\n"
    )
    config = loopback(
        {
            "sentiment": ModelConfig(path=named("sentiment", make_bert()), max_inputs=8),
            "ner": named("ner", make_bert("ForTokenClassification", NER_LABELS)),
            "vectors": named("vectors", make_bert("Model", [])),
            "chat": ModelConfig(
                path=named("chat", make_llama()), max_adapters=2, adapters={"polite": root / f"{CANARY}-polite"}
            ),
        },
        monitors={"news": MonitorConfig(topic="sentiment", sentiment="sentiment", examples=3)},
        indexes={"docs": IndexConfig(path=root / f"{CANARY}-docs", embedding="vectors")},
        feedback=FeedbackConfig(path=root / f"{CANARY}-feedback", max_rows=4),
        tenants=tenants,
        models_root=root,
        drain_seconds=2,
    )
    async with serve_config(config) as served:
        yield served


def sampling(**fields) -> generation_pb2.SamplingParams:
    return generation_pb2.SamplingParams(**{"max_tokens": 2, **fields})


def structured(**constraint) -> generation_pb2.SamplingParams:
    return sampling(structured_output=generation_pb2.StructuredOutput(**constraint))


def chat(*turns: dict, **fields) -> dict:
    return {"chat": {"messages": list(turns), **fields}}


LONG = f"{CANARY} " * 200
USER = {"role": "user", "content": CANARY}


def classifications() -> Iterator[dict]:
    one, two = [{"text": CANARY}], [{"text": CANARY}, {"text": CANARY, "text_pair": CANARY}]
    yield {"model": "sentiment", "inputs": two}
    yield {"model": "sentiment", "inputs": one, "explain": {}}
    yield {"model": "sentiment", "inputs": [{"text": f"{CANARY} good film"}], "explain": {"max_words": 1}}
    yield {"model": "sentiment", "inputs": [{"text": LONG}]}
    yield {"model": "sentiment", "inputs": [{"text": LONG}], "truncation": "TRUNCATION_END"}
    yield {"model": "sentiment", "inputs": [{"text": LONG}], "truncation": "TRUNCATION_WINDOWS"}
    yield {"model": "sentiment", "inputs": [*one, {"text": ""}]}
    yield {"model": "sentiment", "inputs": one * 9}
    yield {"model": "sentiment", "inputs": one, "top_k": 0}
    yield {"model": "sentiment", "inputs": one, "threshold": 7}
    yield {"model": "sentiment", "inputs": one, "labels": [CANARY, "b"]}
    yield {"model": "ner", "inputs": one}
    yield {"model": "nope", "inputs": one}
    zero = {"model": "chat", "inputs": one, "labels": [f"{CANARY}1", "other"]}
    yield zero
    yield zero | {"instruction": CANARY, "examples": [{"text": CANARY, "label": f"{CANARY}1"}], "explain": {}}
    yield zero | {"examples": [{"text": CANARY, "label": f"{CANARY}2"}]}
    yield zero | {"labels": [f"{CANARY}1", f"{CANARY}1"]}
    yield zero | {"labels": [f" {CANARY}", "b"]}
    yield zero | {"labels": [CANARY, LONG]}
    yield zero | {"labels": [CANARY]}
    yield zero | {"inputs": [{"text": LONG}]}
    yield zero | {"instruction": LONG}
    yield zero | {"inputs": two}


def generations() -> Iterator[dict]:
    def ask(**fields) -> dict:
        return {"model": "chat", "prompt": {"text": CANARY}, "sampling": sampling(), **fields}

    yield ask(sampling=sampling(stop=[CANARY], bad_words=[CANARY]))
    yield ask(prompt=chat({"role": "system", "content": CANARY}, USER))
    yield ask(prompt=chat(USER, tools=[{"type": CANARY}], documents=[{CANARY: CANARY}]))
    yield ask(prompt=chat({"role": CANARY, "content": CANARY}))
    yield ask(prompt=chat(USER, template_arguments={"x": CANARY}))
    yield ask(prompt=chat({"role": "", "content": CANARY}))
    yield ask(prompt=chat({**USER, "name": CANARY, "tool_call_id": CANARY, "tool_calls": [{"x": CANARY}]}))
    yield ask(prompt={"text": LONG})
    yield ask(prompt={"token_ids": {"ids": [999]}})
    yield ask(adapter="polite")
    yield ask(adapter="nope")
    yield ask(sampling=sampling(temperature=-1))
    yield ask(sampling=sampling(stop=[""]))
    yield ask(sampling=sampling(stop=[CANARY * 400]))
    yield ask(sampling=sampling(bad_words=[CANARY, " "]))
    yield ask(sampling=structured(json_schema=f'{{"type": "{CANARY}"}}'))
    yield ask(sampling=structured(json_schema=f'{{"{CANARY}": '))
    yield ask(sampling=structured(json_schema=f'{{"$schema": "{CANARY}", "pattern": "({CANARY}"}}'))
    yield ask(sampling=structured(json_schema=f'"{CANARY}"'))
    yield ask(sampling=structured(regex=f"({CANARY}"))
    yield ask(sampling=structured(regex=f"(?P<{CANARY}>a)(?P<{CANARY}>b)"))
    yield ask(sampling=structured(grammar=f"root ::= {CANARY}"))
    yield ask(sampling=structured(choice={"options": [CANARY, ""]}))


def tensor(name: str, *values: bytes, **fields) -> oip.ModelInferRequest.InferInputTensor:
    content = oip.InferTensorContents(bytes_contents=values)
    return oip.ModelInferRequest.InferInputTensor(
        **{"name": name, "datatype": "BYTES", "shape": [len(values)], "contents": content, **fields}
    )


def inferences() -> Iterator[oip.ModelInferRequest]:
    secret = CANARY.encode()

    def ask(model: str, *inputs: oip.ModelInferRequest.InferInputTensor, **parameters) -> oip.ModelInferRequest:
        request = oip.ModelInferRequest(model_name=model, inputs=inputs)
        for name, value in parameters.items():
            request.parameters[name].string_param = value
        return request

    def options(text: bytes) -> oip.ModelInferRequest:
        return ask("chat", tensor("text_input", secret), tensor("sampling_parameters", text))

    yield ask("sentiment", tensor("text", secret, secret))
    yield ask("sentiment", tensor("text", secret, secret, shape=[3]))
    yield ask("sentiment", tensor("text", secret + b"\xff"))
    yield ask("sentiment", tensor("text", LONG.encode()))
    yield ask("sentiment", tensor("text", secret), top_k=CANARY)
    yield ask("sentiment", tensor("text", secret, datatype=CANARY))
    yield ask("sentiment", tensor("text", secret, parameters={"shared_memory_region": {"string_param": CANARY}}))
    yield oip.ModelInferRequest(
        model_name="ner", inputs=[tensor("text", contents=None, shape=[1])], raw_input_contents=[secret]
    )
    yield ask("ner", tensor("text", secret), aggregation=CANARY)
    yield ask("vectors", tensor("text", secret))
    yield options(b'{"max_tokens": 2}')
    yield options(b'{"max_tokens": 2, "stop": ["' + secret + b'"], "guided": ')
    yield options(b'{"temperature": "' + secret + b'"}')
    yield options(b'{"structured_outputs": {"' + secret + b'": 1}}')
    yield options(b'{"structured_outputs": {"json": "' + secret + b'"}}')
    yield options(secret)


def calls(served) -> Iterator[tuple[grpc.aio.UnaryUnaryMultiCallable, list[Message]]]:
    """Every rpc with what is sent: one message but for streams, which take several."""
    classify = ClassificationServiceStub(served.channel)
    generate, models = GenerationServiceStub(served.channel), Models(served.channel)
    infer = GRPCInferenceServiceStub(served.channel)
    requests = [classification_pb2.ClassifyRequest(**one) for one in classifications()]
    for request in requests:
        yield classify.Classify, [request]
    yield (
        classify.ClassifyStream,
        [classification_pb2.ClassifyStreamRequest(id=number, request=one) for number, one in enumerate(requests)],
    )
    monitor = MonitorServiceStub(served.channel)
    observed = [
        monitor_pb2.ObserveStreamRequest(monitor="news", text=text, truncation=how)
        for text in (CANARY, LONG, " ")
        for how in (0, 2, 3)
    ]
    yield monitor.ObserveStream, observed
    yield monitor.Examples, [monitor_pb2.ExamplesRequest(monitor="news", topic=CANARY, sentiment="pos")]
    feedback = FeedbackServiceStub(served.channel).Feedback
    for label in ("pos", "neg", "pos", "neg", "pos", CANARY):
        given = feedback_pb2.LabelFeedback(text=CANARY, labels=[label])
        yield feedback, [feedback_pb2.FeedbackRequest(request_id="r-1", model="sentiment", label=given)]
    judged = feedback_pb2.AnswerFeedback(prompt={"text": CANARY}, answer=CANARY, correction=CANARY)
    clicked = feedback_pb2.ClickFeedback(query=CANARY, chosen=CANARY, ignored=[CANARY])
    yield feedback, [feedback_pb2.FeedbackRequest(request_id=CANARY, model="chat", answer=judged)]
    yield feedback, [feedback_pb2.FeedbackRequest(request_id=f"{CANARY} ", model="vectors", click=clicked)]
    for texts in ([CANARY], [LONG], ["", CANARY]):
        yield classify.ClassifyTokens, [classification_pb2.ClassifyTokensRequest(model="ner", texts=texts)]
        yield EmbeddingServiceStub(served.channel).Embed, [embedding_pb2.EmbedRequest(model="vectors", texts=texts)]
        for label in ("pos", CANARY):
            rank = classification_pb2.RankRequest(model="sentiment", query=CANARY, candidates=texts, label=label)
            yield classify.Rank, [rank]
    answer = AnswerServiceStub(served.channel)
    full = {"id": CANARY, "title": CANARY, "text": CANARY, "metadata": {"a": CANARY}, "readers": [CANARY]}
    for document in (full, full | {"text": LONG}, full | {"title": LONG}, full | {"metadata": {f"{CANARY} ": "a"}}):
        yield answer.UpsertDocuments, [answer_pb2.UpsertDocumentsRequest(index="docs", documents=[document] * 2)]
        yield answer.UpsertDocuments, [answer_pb2.UpsertDocumentsRequest(index="docs", documents=[document])]
    for filters in ([{"key": "a", "values": [CANARY]}], [{"key": f"{CANARY} ", "values": [CANARY]}]):
        yield answer.Search, [answer_pb2.SearchRequest(index="docs", query=CANARY, readers=[CANARY], filters=filters)]
        for messages in ([{"role": "user", "content": CANARY}], [{"role": CANARY, "content": f"{CANARY} " * 4000}]):
            request = answer_pb2.AnswerRequest(index="docs", messages=messages, readers=[CANARY], filters=filters)
            yield answer.Answer, [request]
    yield answer.DeleteDocuments, [answer_pb2.DeleteDocumentsRequest(index="docs", ids=[CANARY])]
    for one in generations():
        yield generate.Generate, [generation_pb2.GenerateRequest(**one)]
        yield generate.GenerateStream, [generation_pb2.GenerateRequest(**one)]
        yield generate.Tokenize, [generation_pb2.TokenizeRequest(model="chat", prompt=one["prompt"])]
    tensors = list(inferences())
    for request in tensors:
        yield infer.ModelInfer, [request]
    yield infer.ModelStreamInfer, tensors
    yield infer.ModelMetadata, [oip.ModelMetadataRequest(name="chat")]
    yield models.GetModel, [model_pb2.GetModelRequest(model="chat")]
    yield models.ListModels, [model_pb2.ListModelsRequest(page_token=CANARY)]
    yield models.ListAliases, [model_pb2.ListAliasesRequest()]
    yield models.DeleteAlias, [model_admin_pb2.DeleteAliasRequest(name="gone", etag=CANARY)]
    for path in ("spare", "spare", "empty", "broken", "missing", "x/../../y", "polite", "large", "\0"):
        path = f"{CANARY}-{path}"
        yield models.LoadModel, [model_admin_pb2.LoadModelRequest(model="sentiment", path=path)]
        yield models.LoadAdapter, [model_admin_pb2.LoadAdapterRequest(model="chat", adapter="more", path=path)]
    yield models.LoadAdapter, [model_admin_pb2.LoadAdapterRequest(model="ner", adapter="more", path=f"{CANARY}-polite")]
    yield models.UnloadAdapter, [model_admin_pb2.UnloadAdapterRequest(model="chat", adapter="more")]


async def said(call) -> list[str]:
    """All that a call's end says, and what is said of parts of a stream; not what it answers."""
    parts: list[str] = []
    with contextlib.suppress(grpc.aio.AioRpcError):
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            async for one in call:
                kinds = classification_pb2.ClassifyStreamResponse, monitor_pb2.ObserveStreamResponse
                parts += [str(one.error)] if isinstance(one, kinds) else []
                parts += [one.error_message] if isinstance(one, oip.ModelStreamInferResponse) else []
    parts += [(await call.code()).name, await call.details() or "", repr(await call.initial_metadata())]
    return [*parts, repr(await call.trailing_metadata())]


async def drive(served, key: str = KEY) -> list[str]:
    """Makes every call; returns all that was said."""
    metadata = (("authorization", f"Bearer {key}"), ("x-mine", CANARY), ("traceparent", CANARY), ("user-agent", CANARY))
    found = []
    for method, messages in calls(served):
        many = isinstance(method, grpc.aio.StreamStreamMultiCallable)
        found += await said(method(iter(messages) if many else messages[0], metadata=metadata, timeout=60))
    return found


async def page(served) -> str:
    def fetch() -> str:
        with urllib.request.urlopen(f"http://{served.app.metrics_address}/metrics", timeout=10) as response:
            return response.read().decode()

    return await asyncio.to_thread(fetch)


def with_canary(found: list[str]) -> list[str]:
    return [one[:300] for one in found if CANARY.lower() in one.lower()]


async def heard(served, ear, capfd) -> list[str]:
    """All that the server wrote anywhere."""
    gc.collect()  # what nobody awaited is logged when it is thrown away
    await asyncio.sleep(0)
    return [*ear.heard, *(await page(served)).splitlines(), *capfd.readouterr()]


def chained() -> Exception:
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise RuntimeError(f"prompt: {CANARY}") from error
    except RuntimeError as error:
        return error


FAILURES: list[Exception | None] = [
    None,
    chained(),
    EngineFailed(CANARY),
    RequestRefused("temperature"),
    ExceptionGroup(CANARY, [ValueError(CANARY)]),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda one: type(one).__name__ if one else "no failure")
async def test_the_canary_is_nowhere(ear, server, capfd, failure):
    for engine in server.engines.values():
        engine.broken = failure
    codes = await drive(server)
    assert "OK" in codes
    assert "INVALID_ARGUMENT" in codes
    if failure is not None and not isinstance(failure, RequestRefused):
        assert {"INTERNAL", "UNAVAILABLE"} & set(codes)
    assert not with_canary(codes)
    assert any("Classify" in line for line in ear.heard)
    assert not with_canary(await heard(server, ear, capfd))


async def test_keys_are_nowhere(ear, server, capfd):
    wrong = await drive(server, KEY + "-wrong")
    assert "UNAUTHENTICATED" in wrong
    limited = await drive(server, KEY + "s")
    assert {"PERMISSION_DENIED", "RESOURCE_EXHAUSTED"} & set(limited)
    assert not with_canary(wrong + limited)
    assert not with_canary(await heard(server, ear, capfd))


async def test_a_dying_engine_takes_no_text_with_it(ear, server, capfd, monkeypatch, until):
    """Nor does one that can't be started again."""

    async def fail(*_args) -> None:
        raise RuntimeError(f"can't load {CANARY}")

    monkeypatch.setattr("tuneserve.server.models.supervisor._BACK_OFF_SECONDS", (0.05, 0.1))
    monkeypatch.setattr(server.app.supervisor, "_make_engine", fail)
    monkeypatch.setattr(server.engines["chat"], "ping", fail)
    for _ in range(100):
        await asyncio.sleep(0.1)
        if any("start again" in line for line in ear.heard):
            break
    assert any("start again" in line for line in ear.heard)
    codes = await drive(server)
    assert "UNAVAILABLE" in codes
    assert not with_canary(codes)
    assert not with_canary(await heard(server, ear, capfd))


async def test_an_exception_that_nobody_caught_is_logged_without_its_text(ear, served):
    async def fail() -> None:
        raise RuntimeError(CANARY)

    task = asyncio.create_task(fail())
    await asyncio.wait((task,))
    del task
    gc.collect()
    assert any("never retrieved: RuntimeError at test_log_privacy.py" in line for line in ear.heard)
    assert not with_canary(ear.heard)
