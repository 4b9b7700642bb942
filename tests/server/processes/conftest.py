"""Real servers of two processes, without models."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tuneserve.serving import Server, launched


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
