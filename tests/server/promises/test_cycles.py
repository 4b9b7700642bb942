"""What a call needed is gone with it: nothing waits for Python's collector, which seldom comes while many run."""

import asyncio
import contextlib
import gc
import weakref
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest

from tuneserve.oip import inference_pb2
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tuneserve.server import garbage
from tuneserve.v1 import classification_pb2, generation_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

# So many, because the last 64 or so are found only later.
CALLS = 150
# gRPC's own: five objects a call.
GRPCS = ("_Metadatum", "'tuple'", "find_method_handler", "cython_function_or_method", "_HandlerCallDetails")


@pytest.fixture
def collecting() -> Iterator[None]:
    """By hand alone."""
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


async def _classify(channel, text="good", **fields):
    request = classification_pb2.ClassifyRequest(model="sentiment", inputs=[{"text": text}], **fields)
    return await ClassificationServiceStub(channel).Classify(request)


async def _classify_stream(channel, text="good"):
    request = classification_pb2.ClassifyRequest(model="sentiment", inputs=[{"text": text}])
    given = [classification_pb2.ClassifyStreamRequest(id=index, request=request) for index in range(3)]
    return [answer async for answer in ClassificationServiceStub(channel).ClassifyStream(iter(given))]


async def _generate(channel, prompt=None, **sampling):
    request = generation_pb2.GenerateRequest(model="chat", prompt=prompt or {"text": "a film"}, sampling=sampling)
    return await GenerationServiceStub(channel).Generate(request)


async def _given_up(channel):
    request = generation_pb2.GenerateRequest(model="chat", prompt={"text": "a film"}, sampling={"max_tokens": 9})
    async for _ in GenerationServiceStub(channel).GenerateStream(request):
        break


async def _infer(channel, *texts: str):
    texts = texts or ("a film", "a movie")
    request = inference_pb2.ModelInferRequest(model_name="chat")
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return await GRPCInferenceServiceStub(channel).ModelInfer(request)


KINDS = {
    "classified": _classify,
    "a blank text": lambda channel: _classify(channel, text=" "),
    "far too many tokens": lambda channel: _generate(channel, {"token_ids": {"ids": [5] * 100_000}}),
    "a text that is too long": lambda channel: _classify(channel, text="good " * 99),
    "an explanation": lambda channel: _classify(channel, explain={}),
    "a stream": _classify_stream,
    "a stream of blank texts": lambda channel: _classify_stream(channel, text=" "),
    "generated": _generate,
    "a wrong parameter": lambda channel: _generate(channel, temperature=-1),
    "given up": _given_up,
    "a batch": _infer,
    "a batch of which one is too long": lambda channel: _infer(channel, "a", "good " * 99, *["film"] * 40),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_leaves_nothing_for_the_collector(own_server, collecting, kind):
    for engine in own_server.engines.values():
        engine.delay = 0.01

    async def made() -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await KINDS[kind](own_server.channel)

    await made()
    await asyncio.sleep(0.1)
    gc.collect()
    await asyncio.gather(*(made() for _ in range(CALLS)))
    await asyncio.sleep(0.2)
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    left = Counter(str(type(one)) for one in gc.garbage)
    assert not {kind: count for kind, count in left.items() if not any(known in kind for known in GRPCS)}


async def test_much_is_collected_whatever_runs(monkeypatch, until):
    monkeypatch.setattr(garbage, "_SECONDS", 0.01)
    monkeypatch.setattr(garbage, "_MUCH", 3)
    collecting = asyncio.create_task(garbage.collect(range(garbage._FEW_CALLS + 1)))
    await asyncio.sleep(0.05)

    class Circle:
        def __init__(self) -> None:
            self.itself = self

    last = weakref.ref(Circle())
    kept = [[index] for index in range(10 * gc.get_threshold()[0] * gc.get_threshold()[1])]
    await until(lambda: last() is None)
    await until(lambda: gc.get_count()[2] < 3)
    assert len(kept)
    collecting.cancel()
