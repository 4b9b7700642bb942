"""A fake engine over a real wire: the real server, tokenizers and gRPC, and numbers in place of a model."""

import asyncio
import os
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
from prometheus_client import Gauge
from tokenizers.decoders import DecodeStream

from tuneserve.server import engine as engine_room
from tuneserve.server.app import App
from tuneserve.server.config import ConfigFile, FeedbackConfig, IndexConfig, ModelConfig, MonitorConfig, ServerConfig
from tuneserve.server.engine.interface import Delta
from tuneserve.v1 import checkpoint_pb2, model_admin_pb2, model_pb2
from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from .troubled_engine import TroubledEngine

NER_LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
# With 2, the servers here are as one of two that does not know the other.
PROCESSES = int(os.environ.get("TUNESERVE_PROCESSES", "1"))
# Free ports of this machine's own.
PORTS = dict.fromkeys(("listen", "metrics_listen", "admin_listen"), "127.0.0.1:0")


@dataclass
class Served:
    """A running server, channels to its two ports, and its fake engines by model name: the ones started last."""

    app: App
    channel: grpc.aio.Channel
    admin: grpc.aio.Channel
    engines: dict[str, TroubledEngine]


def loopback(models: Mapping[str, Path | ModelConfig], **settings: Any) -> ServerConfig:
    """Settings of a server of these models, or directories, on free ports."""
    configs = {name: ModelConfig(path=one) if isinstance(one, Path) else one for name, one in models.items()}
    return ServerConfig(models=configs, **PORTS | {"processes": PROCESSES} | settings)


@asynccontextmanager
async def served_by(
    config: ServerConfig,
    made: Callable[[str, TroubledEngine], None] = lambda name, engine: None,
    file: ConfigFile | None = None,
) -> AsyncIterator[Served]:
    """A server of any settings on fake engines. `made` is told of each engine before it starts. With a file, it follows
    that.
    """
    engines: dict[str, TroubledEngine] = {}

    async def make_engine(name: str, config: ModelConfig, manifest: checkpoint_pb2.Checkpoint) -> TroubledEngine:
        slots = {} if config.max_num_seqs is None else {"max_num_seqs": config.max_num_seqs}
        engine = engines[name] = TroubledEngine(len(manifest.labels), max_length=manifest.max_length, **slots)
        Gauge("vllm:num_requests_running", "Running.", registry=engine.registry).set_function(lambda: engine.running)
        made(name, engine)
        return engine

    app = App(config, make_engine, file)
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
    """Five models, one of each kind, an index, a monitor and feedback, on fake engines."""
    models = {
        "sentiment": ModelConfig(path=make_bert(), max_queue=4, max_inputs=8),
        "topics": make_bert(labels=["a", "b", "c"], problem_type="multi_label_classification"),
        "ner": make_bert("ForTokenClassification", NER_LABELS),
        "chat": ModelConfig(path=make_llama(), max_queue=4, max_adapters=2),
        "vectors": make_bert("Model", []),
    }
    monitors = {"news": MonitorConfig(topic="topics", sentiment="sentiment", examples=3)}
    with TemporaryDirectory() as folder:
        kept: dict[str, Any] = {
            "indexes": {"docs": IndexConfig(path=Path(folder, "docs"), embedding="vectors")},
            "feedback": FeedbackConfig(path=Path(folder, "feedback")),
        }
        given = {"drain_seconds": 5, "monitors": monitors, **kept} | settings
        async with served_by(loopback(models, **given)) as server:
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
def served(shared_server: Served) -> Iterator[Served]:
    """The server that all tests share, its engines as new."""
    for engine in shared_server.engines.values():
        engine.pooled.clear()
        engine.sampled.clear()
        engine.tickets.clear()
    yield shared_server
    # At the test's end: pings of a slow engine would be tasks that tests of other servers did not start.
    for engine in shared_server.engines.values():
        engine.delay, engine.broken = 0.0, None


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
