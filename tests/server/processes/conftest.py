"""Real servers of two processes, without models or with fake engines; and two processes that are here in one."""

import asyncio
import json
import os
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tuneserve.server.app import App
from tuneserve.serving import Server, launched

from ..conftest import Models, loopback
from ..models.test_administration import make_adapter
from ..troubled_engine import TroubledEngine


@pytest.fixture(scope="session")
def serve(tmp_path_factory) -> Callable[..., AbstractContextManager[Server]]:
    """`with serve(**settings) as server` runs a server of two processes."""

    @contextmanager
    def run(**settings: Any) -> Iterator[Server]:
        config = tmp_path_factory.mktemp("server") / "server.yaml"
        ports = dict.fromkeys(("admin_listen", "health_listen"), "127.0.0.1:0")
        config.write_text(json.dumps(ports | {"linger_seconds": 0} | settings))
        with launched("--config", str(config), "--processes", "2") as server:
            yield server

    return run


@pytest.fixture(scope="session")
def two(serve) -> Iterator[Server]:
    """A server that tests leave as it was."""
    with serve() as server:
        yield server


@pytest.fixture(scope="session")
def children() -> Callable[[Server], list[psutil.Process]]:
    return lambda server: psutil.Process(server.process.pid).children()


@pytest.fixture(scope="session")
def metric() -> Callable[..., float]:
    """`metric(server, name, **labels)` is the sum of the samples with these labels."""

    def read(server: Server, name: str, **labels: str) -> float:
        with urllib.request.urlopen(f"http://{server.addresses.metrics}/metrics", timeout=20) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

    return read


@dataclass
class One:
    """A process: what it serves, its administration, and the engines it started last."""

    app: App
    admin: Models
    engines: dict[str, TroubledEngine]

    def serves(self) -> tuple[dict[str, tuple], dict[str, tuple]]:
        """The state and the adapters of each version, and the targets of each alias."""
        models, routes = self.app.models, self.app.models.routes
        return (
            {model.id: (model.state, tuple(model.adapters._names)) for model in models},
            {name: tuple((target.id, weight) for target, weight in route.targets) for name, route in routes.items()},
        )


@dataclass
class Pair:
    """A server: `ones` are its processes. `troubles` are done to each engine before it starts."""

    folder: Path
    start: Callable
    ones: list[One] = field(default_factory=list)
    troubles: list[Callable[[int, TroubledEngine], None]] = field(default_factory=list)

    async def both(self) -> tuple[dict[str, tuple], dict[str, tuple]]:
        """What both serve, once it is the same."""
        for _ in range(200):
            first, second = (one.serves() for one in self.ones)
            if first == second:
                return first
            await asyncio.sleep(0.02)
        raise AssertionError(f"{first} is not {second}")


@pytest.fixture
async def pair(tmp_path, monkeypatch, make_bert, make_llama) -> AsyncIterator[Pair]:
    """Two processes that serve `m`, and more to load."""
    root, folder = tmp_path / "root", tmp_path / "shared"
    folder.mkdir()
    root.mkdir()
    for name, made in {"a": make_bert(), "b": make_bert(labels=["x", "y"]), "chat": make_llama()}.items():
        made.rename(root / name)
    make_adapter(root / "adapter")

    @asynccontextmanager
    async def start(number: int) -> AsyncIterator[One]:
        engines: dict[str, TroubledEngine] = {}

        async def make(name, config, manifest):
            engines[name] = TroubledEngine(len(manifest.labels), max_length=manifest.max_length)
            for trouble in server.troubles:
                trouble(number, engines[name])
            return engines[name]

        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: number)
            app = App(loopback({"m": root / "a"}, models_root=root, processes=2), make, shared=folder)
        try:
            await app.start()
            async with grpc.aio.insecure_channel(app.admin_address) as channel:
                yield One(app, Models(channel), engines)
        finally:
            await app.stop()

    async with AsyncExitStack() as stack:
        server = Pair(folder, start)
        for number in (0, 1):
            server.ones.append(await stack.enter_async_context(start(number)))
        yield server
