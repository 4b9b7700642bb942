"""A fake engine over a real wire: the real server, tokenizers and gRPC, and numbers in place of a model."""

import asyncio
import time
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Gauge
from tokenizers.decoders import DecodeStream

from tuneserve.server import engine as engine_room
from tuneserve.server.app import App
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.server.engine.interface import (
    Alternative,
    Delta,
    Encoded,
    EngineFailed,
    Logprob,
    Parsers,
    Sampling,
    Ticket,
)
from tuneserve.server.turns import in_turns
from tuneserve.v1 import checkpoint_pb2, model_admin_pb2, model_pb2
from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

NER_LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@dataclass
class FakeEngine:
    """Answers by token id, so that a test can tell which input an answer belongs to. `running` counts its slots."""

    labels: int
    max_length: int = 32
    max_num_seqs: int = 4
    vocab_size: int = 300
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    running: int = 0
    delay: float = 0.0  # seconds for each step
    broken: Exception | None = None
    hangs: bool = False
    starts: bool = True  # or waits with that
    share: float = 0.0  # of a core, that its process uses while it hangs or is slow
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    pooled: list[Encoded] = field(default_factory=list)
    sampled: list[Sampling] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)
    adapters: dict[str, Path] = field(default_factory=dict)
    logprobs: dict[tuple[int, ...], dict[int, float]] = field(default_factory=dict)  # by prompt, then by token
    parsers: Parsers | None = None
    script: Sequence[Delta] = ()  # what it writes, in pieces, as each completion

    def __post_init__(self) -> None:
        Gauge("vllm:num_requests_running", "Running.", registry=self.registry).set_function(lambda: self.running)

    async def start(self) -> None:
        while not self.starts:
            await asyncio.sleep(0.01)
            if self.killed.is_set():
                raise EngineFailed("killed")

    async def pool(self, ticket: Ticket, inputs: Sequence[Encoded], task: str) -> list[np.ndarray]:
        self.tickets.append(ticket)
        self.running += len(inputs)
        try:
            await self._step()
            self.pooled.extend(inputs)
            if task == "token_classify":
                classes = np.eye(self.labels, dtype=np.float32) * 9
                return [classes[np.asarray(one.token_ids) % self.labels] async for one in in_turns(inputs)]
            if task == "embed":
                return [np.array([3, 4, len(one.token_ids)], dtype=np.float32) async for one in in_turns(inputs)]
            rows = np.eye(self.labels, dtype=np.float32) * 2
            return [rows[len(one.token_ids) % self.labels] async for one in in_turns(inputs)]
        finally:
            self.running -= len(inputs)

    async def generate(
        self, ticket: Ticket, token_ids: Sequence[int], sampling: Sampling, stream: bool
    ) -> AsyncGenerator[list[Delta], None]:
        self.tickets.append(ticket)
        self.running += 1
        self.sampled.append(sampling)
        try:
            if len(sampling.allowed_token_ids) == 1 and sampling.max_tokens == 1:
                await self._step()
                [only] = sampling.allowed_token_ids
                logprob = self.logprobs.get(tuple(token_ids), {}).get(only, -9.0)
                yield [Delta(0, "", [only], logprobs=[Logprob(only, logprob, [])], finish="length")]
                return
            if self.script:
                pieces = list(self.script) if stream else [_joined(self.script)]
                for piece in pieces:
                    await self._step()
                    yield [replace(piece, index=i) for i in range(sampling.n)]
                return
            if not stream:
                await self._step()
                prompt = [Logprob(id_, -0.5, []) for id_ in token_ids[1:]]
                others = [Alternative(index, -index, "é") for index in range(sampling.logprobs or 0)]
                made = [] if sampling.logprobs is None else [Logprob(7, -0.5, others)] * sampling.max_tokens
                yield [
                    Delta(
                        i,
                        "ab" * sampling.max_tokens,
                        [7] * sampling.max_tokens,
                        made,
                        finish="length",
                        prompt_logprobs=prompt if sampling.prompt_logprobs is not None else [],
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

    async def load_adapter(self, name: str, directory: Path) -> None:
        self.adapters[name] = directory

    async def unload_adapter(self, name: str) -> None:
        del self.adapters[name]

    async def ping(self) -> None:
        try:
            await self._step()
        except Exception as error:
            # As the real one: what becomes of requests says nothing of the engine's life.
            if isinstance(error, EngineFailed):
                raise

    def cpu_seconds(self) -> dict[int, float]:
        # Two processes: one idles.
        is_sound = self.starts and not self.hangs and not self.delay
        return {1: time.monotonic() * (1.0 if is_sound else self.share), 2: 5.0}

    def kill(self) -> None:
        self.killed.set()

    async def close(self) -> None:
        self.closed = True

    async def _step(self) -> None:
        if self.hangs:
            await self.killed.wait()
        await asyncio.sleep(self.delay)
        if self.killed.is_set():
            raise EngineFailed("killed")
        if self.broken:
            raise self.broken


def _joined(pieces: Sequence[Delta]) -> Delta:
    text = "".join(piece.text for piece in pieces)
    return replace(pieces[-1], text=text, token_ids=[id_ for piece in pieces for id_ in piece.token_ids])


@dataclass
class Served:
    """A running server, channels to its two ports, and its fake engines by model name: the ones started last."""

    app: App
    channel: grpc.aio.Channel
    admin: grpc.aio.Channel
    engines: dict[str, FakeEngine]


@asynccontextmanager
async def served_by(
    config: ServerConfig, made: Callable[[str, FakeEngine], None] = lambda name, engine: None
) -> AsyncIterator[Served]:
    """A server of any settings on fake engines. `made` is told of each engine before it starts."""
    engines: dict[str, FakeEngine] = {}

    async def make_engine(name: str, config: ModelConfig, manifest: checkpoint_pb2.Checkpoint) -> FakeEngine:
        slots = {} if config.max_num_seqs is None else {"max_num_seqs": config.max_num_seqs}
        engines[name] = FakeEngine(len(manifest.labels), max_length=manifest.max_length, **slots)
        made(name, engines[name])
        return engines[name]

    app = App(config, make_engine)
    try:
        await app.start()
        async with (
            grpc.aio.insecure_channel(app.address) as channel,
            grpc.aio.insecure_channel(app.admin_address) as admin,
        ):
            yield Served(app, channel, admin, engines)
    finally:
        await app.stop()


@asynccontextmanager
async def serving(make_bert, make_llama, **settings) -> AsyncIterator[Served]:
    """Five models, one of each kind, on fake engines."""
    config = ServerConfig(
        models={
            "sentiment": ModelConfig(
                path=make_bert("ForSequenceClassification", ["neg", "pos"]), max_queue=4, max_inputs=8
            ),
            "topics": ModelConfig(
                path=make_bert("ForSequenceClassification", ["a", "b", "c"], problem_type="multi_label_classification")
            ),
            "ner": ModelConfig(path=make_bert("ForTokenClassification", NER_LABELS)),
            "chat": ModelConfig(path=make_llama(), max_queue=4, max_adapters=2),
            "vectors": ModelConfig(path=make_bert("Model", [])),
        },
        **{
            "listen": "127.0.0.1:0",
            "metrics_listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "drain_seconds": 5,
            **settings,
        },
    )
    async with served_by(config) as server:
        yield server


class Models:
    """Every call of ModelService and of ModelAdminService."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        for stub in (ModelServiceStub(channel), ModelAdminServiceStub(channel)):
            vars(self).update(vars(stub))

    async def load(self, model: str, path: str, **settings: Any) -> model_pb2.Model:
        """Loads a version, and returns it as it is when that has ended."""
        request = model_admin_pb2.LoadModelRequest(model=model, path=path, settings=settings)
        loaded = (await self.LoadModel(request)).model
        async for update in self.WatchModel(model_pb2.WatchModelRequest(model=loaded.id)):
            loaded = update.model
        return loaded


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
        engine.tickets.clear()
        engine.logprobs.clear()
    return shared_server


@pytest.fixture
async def own_server(make_bert, make_llama) -> AsyncIterator[Served]:
    """A server for a test that counts from zero, or breaks it."""
    async with serving(make_bert, make_llama) as server:
        yield server


@pytest.fixture(scope="session")
def make_parsers() -> Iterator[Callable[..., Any]]:
    """Makes vLLM's parsers, and a tokenizer, for a checkpoint: make_parsers(directory, "hermes", "deepseek_r1")."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("VLLM_LOGGING_CONFIG_PATH", str(Path(engine_room.__file__).with_name("vllm_logging.json")))
        from transformers import AutoTokenizer
        from vllm.tokenizers.hf import get_cached_tokenizer

        from tuneserve.server.engine.parsers import VllmParsers

        def make(directory: Path, tool_parser: str | None, reasoning_parser: str | None) -> tuple[VllmParsers, Any]:
            tokenizer = get_cached_tokenizer(AutoTokenizer.from_pretrained(directory))
            return VllmParsers(tool_parser, reasoning_parser, tokenizer), tokenizer

        yield make


@pytest.fixture(scope="session")
def written() -> Callable[..., list[Delta]]:
    """written(tokenizer, text) is what an engine gives of a model that writes this: in pieces of some tokens."""

    def pieces(tokenizer: Any, text: str, size: int = 1, finish: str = "stop") -> list[Delta]:
        ids, decoding = tokenizer.encode(text, add_special_tokens=False), DecodeStream()
        texts = [decoding.step(tokenizer.backend_tokenizer, id_) or "" for id_ in ids]
        found = [
            Delta(0, "".join(texts[start : start + size]), ids[start : start + size])
            for start in range(0, len(ids), size)
        ]
        assert "".join(texts) == text
        return [*found[:-1], replace(found[-1], finish=finish)]

    return pieces


@pytest.fixture(scope="session")
def serve_config():
    """Starts a server of a test's own settings: `async with serve_config(config) as served`."""
    return served_by


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
    """Waits for something to become true; not for ever, but long enough for a machine with other work."""

    async def wait(condition) -> None:
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("did not happen within ten seconds")

    return wait
