"""Copies for a shadow, without a wire: which calls are copied, how many at a time, and what counts as the same."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from tuneserve.server.call import context
from tuneserve.server.call.tenants import SHADOW, Tenant
from tuneserve.server.config import ModelConfig
from tuneserve.server.metrics import Metrics
from tuneserve.server.models import shadow
from tuneserve.server.models.aliases import Models, Route
from tuneserve.server.models.model import Model
from tuneserve.server.models.shadow import Shadows, essence
from tuneserve.v1 import checkpoint_pb2, embedding_pb2, generation_pb2, model_admin_pb2
from tuneserve.v1 import classification_pb2 as pb

CALLER = ContextVar("caller", default="nobody")
REQUEST = pb.ClassifyRequest(model="m", inputs=[pb.ClassifyInput(text="good")])


def classified(*labels: str, score: float = 0.5) -> pb.ClassifyResponse:
    results = [pb.Classification(labels=[pb.LabelScore(label=label, score=score)]) for label in labels]
    return pb.ClassifyResponse(results=results)


class Server:
    """An alias `m` with a shadow, `n` without, and what the shadow is asked and answers."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        [old, self.shadow] = [
            Model("m", ModelConfig(path="/m"), manifest(content), self.metrics) for content in ("a", "b")
        ]
        models = Models()
        models.set_route("m", Route([(old, 1)], shadow=self.shadow))
        models.set_route("n", Route([(old, 1)]))
        self.shadows = Shadows(models, self.metrics)
        self.asked: list[Any] = []
        self.calls: list[context.Call] = []
        self.callers: list[str] = []
        self.answer: Callable[[], Awaitable[Any]] = self.pos
        self.goes_on = asyncio.Event()

    async def pos(self) -> Any:
        return classified("pos")

    async def waits(self) -> Any:
        await self.goes_on.wait()
        return classified("pos")

    async def fails(self) -> Any:
        raise ValueError("canary-of-a-prompt")

    async def Classify(self, request: Any, context_: Any) -> Any:
        self.asked.append(request)
        self.calls.append(context.current())
        self.callers.append(CALLER.get())
        return await self.answer()

    def mirror(self, request: Any = REQUEST, response: Any = None) -> None:
        self.shadows.mirror(self.Classify, request, response or classified("pos"))

    def counted(self, result: str) -> float:
        labels = {"alias": "m", "model": "m", "version": self.shadow.version, "result": result}
        return self.metrics.registry.get_sample_value("tuneserve_shadow_total", labels) or 0


def manifest(content: str) -> checkpoint_pb2.Checkpoint:
    return checkpoint_pb2.Checkpoint(files=[checkpoint_pb2.File(path="model", sha256=content)])


@pytest.fixture
async def server():
    own = Server()
    yield own
    own.goes_on.set()
    await own.shadows.stop()


async def test_a_copy_goes_to_the_shadow_and_is_nobodys_call(server, until):
    context.begin(context.Call("req-1", "Classify", Tenant("acme"), {}, server.metrics))
    CALLER.set("acme")
    server.mirror()
    await until(lambda: server.counted("same"))
    assert server.callers == ["nobody"], "nothing of the caller's context"
    [asked] = server.asked
    assert asked.model == server.shadow.id
    assert asked.inputs == REQUEST.inputs
    assert REQUEST.model == "m"
    [call] = server.calls
    assert (call.tenant, call.metrics is server.metrics) == (SHADOW, False)
    assert context.current().tenant.name == "acme"


async def test_only_whether_it_agrees_is_counted(server, until, caplog):
    caplog.set_level("INFO")
    server.mirror(response=classified("pos", score=0.51))
    await until(lambda: server.counted("same") == 1)
    server.mirror(response=classified("neg"))
    await until(lambda: server.counted("different") == 1)
    server.answer = server.fails
    server.mirror()
    await until(lambda: server.counted("error") == 1)
    assert "its shadow failed: ValueError" in caplog.text
    assert "canary" not in caplog.text


async def test_what_is_not_copied(server):
    for request in (
        model_admin_pb2.LoadAdapterRequest(model="m", adapter="a"),
        generation_pb2.TokenizeRequest(model="m"),
        pb.ClassifyRequest(model="n"),
        pb.ClassifyRequest(model="absent"),
    ):
        server.mirror(request)
    await asyncio.sleep(0)
    assert server.asked == []


async def test_copies_are_bounded_in_number(server, until, monkeypatch):
    monkeypatch.setattr(shadow, "_MOST", 2)
    server.answer = server.waits
    for _ in range(5):
        server.mirror()
    assert server.counted("dropped") == 3
    server.goes_on.set()
    await until(lambda: server.counted("same") == 2)
    server.mirror()
    await until(lambda: server.counted("same") == 3)


async def test_copies_are_bounded_in_bytes(server, until, monkeypatch):
    monkeypatch.setattr(shadow, "_MOST_BYTES", 2 * REQUEST.ByteSize())
    server.answer = server.waits
    for _ in range(3):
        server.mirror()
    assert server.counted("dropped") == 1
    server.goes_on.set()
    await until(lambda: server.counted("same") == 2)
    server.mirror()
    await until(lambda: server.counted("same") == 3)


async def test_copies_end_with_the_server(server, until):
    await server.shadows.stop()
    server.answer = server.waits
    server.mirror()
    await until(lambda: server.asked)
    await server.shadows.stop()
    server.goes_on.set()
    await asyncio.sleep(0)
    assert [server.counted(result) for result in ("same", "different", "error")] == [0, 0, 0]


def spans(label: str, score: float = 0.9) -> pb.ClassifyTokensResponse:
    span = pb.Span(label=label, start=0, end=4, score=score)
    return pb.ClassifyTokensResponse(results=[pb.TokenClassification(spans=[span])])


def ranked(*order: int, score: float = 0.9) -> pb.RankResponse:
    return pb.RankResponse(results=[pb.RankedCandidate(index=index, score=score) for index in order])


def generated(text: str, arguments: str = "", id_: str = "") -> generation_pb2.GenerateResponse:
    calls = [generation_pb2.ToolCall(id=id_, name="look", arguments=arguments)]
    return generation_pb2.GenerateResponse(completions=[generation_pb2.Completion(text=text, tool_calls=calls)])


@pytest.mark.parametrize(
    ("answer", "same", "other"),
    [
        (classified("a", "b"), classified("a", "b", score=0.1), classified("b", "a")),
        (pb.ClassifyResponse(results=[pb.Classification()]),) * 2 + (classified("a"),),
        (spans("PER"), spans("PER", score=0.1), spans("LOC")),
        (ranked(1, 0), ranked(1, 0, score=0.1), ranked(0, 1)),
        (generated("a", "{}", id_="1"), generated("a", "{}", id_="2"), generated("a", '{"b": 1}')),
        (generated("a"), generated("a"), generated("b")),
    ],
)
def test_what_is_the_same(answer, same, other):
    assert essence(answer) == essence(same)
    assert essence(answer) != essence(other)


def test_vectors_of_two_models_are_never_the_same():
    answer = embedding_pb2.EmbedResponse()
    assert essence(answer) != essence(answer)
