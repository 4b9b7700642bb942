"""A fake engine over a real wire: the real server, tokenizers and gRPC, and numbers in place of a model."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Gauge

from tuneserve.server.app import App
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.server.seam import Delta, Encoded, Logprob, Sampling

NER_LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@dataclass
class FakeEngine:
    """Answers by token id, so that a test can tell which input an answer belongs to. `running` counts its slots."""

    labels: int
    max_length: int = 32
    vocab_size: int = 300
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    running: int = 0
    delay: float = 0.0  # seconds for each step
    broken: Exception | None = None
    pooled: list[Encoded] = field(default_factory=list)
    sampled: list[Sampling] = field(default_factory=list)

    def __post_init__(self) -> None:
        Gauge("vllm:num_requests_running", "Running.", registry=self.registry).set_function(lambda: self.running)

    async def pool(self, request_id: str, inputs: Sequence[Encoded], task: str) -> list[np.ndarray]:
        self.running += len(inputs)
        try:
            await self._step()
            self.pooled.extend(inputs)
            if task == "classify":
                return [np.eye(self.labels, dtype=np.float32)[len(one.token_ids) % self.labels] * 2 for one in inputs]
            return [
                np.eye(self.labels, dtype=np.float32)[[id_ % self.labels for id_ in one.token_ids]] * 9
                for one in inputs
            ]
        finally:
            self.running -= len(inputs)

    async def generate(
        self, request_id: str, token_ids: Sequence[int], sampling: Sampling, stream: bool
    ) -> AsyncGenerator[list[Delta], None]:
        self.running += 1
        self.sampled.append(sampling)
        try:
            if not stream:
                await self._step()
                entries = (
                    [Logprob(id_, -0.5, []) for id_ in token_ids[1:]] if sampling.prompt_logprobs is not None else []
                )
                yield [
                    Delta(
                        i,
                        "ab" * sampling.max_tokens,
                        [7] * sampling.max_tokens,
                        finish="length",
                        prompt_logprobs=entries,
                    )
                    for i in range(sampling.n)
                ]
                return
            for step in range(sampling.max_tokens):
                await self._step()
                finish = "length" if step == sampling.max_tokens - 1 else None
                yield [Delta(i, "ab", [7], finish=finish) for i in range(sampling.n)]
        finally:
            self.running -= 1

    async def ping(self) -> None:
        await self._step()

    async def close(self) -> None:
        pass

    async def _step(self) -> None:
        await asyncio.sleep(self.delay)
        if self.broken:
            raise self.broken


@dataclass
class Served:
    """A running server, a channel to it, and its fake engines by model name."""

    app: App
    channel: grpc.aio.Channel
    engines: dict[str, FakeEngine]


@asynccontextmanager
async def serving(make_bert, make_llama) -> AsyncIterator[Served]:
    """Four models, one of each kind, on fake engines."""
    config = ServerConfig(
        models={
            "sentiment": ModelConfig(make_bert("ForSequenceClassification", ["neg", "pos"]), max_queue=4, max_inputs=8),
            "topics": ModelConfig(
                make_bert("ForSequenceClassification", ["a", "b", "c"], problem_type="multi_label_classification")
            ),
            "ner": ModelConfig(make_bert("ForTokenClassification", NER_LABELS)),
            "chat": ModelConfig(make_llama(), max_queue=4),
        },
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        drain_seconds=5,
    )
    engines: dict[str, FakeEngine] = {}

    async def make_engine(name, config, manifest):
        return engines.setdefault(name, FakeEngine(len(manifest.labels), max_length=manifest.max_length))

    app = App(config, make_engine)
    await app.start()
    async with grpc.aio.insecure_channel(app.address) as channel:
        yield Served(app, channel, engines)
    await app.stop()


@pytest.fixture(scope="session")
async def shared_server(make_bert, make_llama) -> AsyncIterator[Served]:
    async with serving(make_bert, make_llama) as server:
        yield server


@pytest.fixture
def served(shared_server: Served) -> Served:
    """The server that all tests share, its engines as new."""
    for engine in shared_server.engines.values():
        engine.delay, engine.broken = 0.0, None
        engine.pooled.clear()
        engine.sampled.clear()
    return shared_server


@pytest.fixture
async def own_server(make_bert, make_llama) -> AsyncIterator[Served]:
    """A server for a test that counts from zero, or breaks it."""
    async with serving(make_bert, make_llama) as server:
        yield server


@pytest.fixture
def refused():
    """Checks that a call ends with a code, and returns the error."""

    async def check(call, code: grpc.StatusCode) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == code, caught.value.details()
        return caught.value

    return check


@pytest.fixture
def until():
    """Waits up to two seconds for something to become true."""

    async def wait(condition) -> None:
        for _ in range(200):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("did not happen within two seconds")

    return wait
